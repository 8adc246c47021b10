"""requirements/ci.txt pins what pyproject.toml asks for."""

from __future__ import annotations

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import PROJECT, ROOT


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    lines = (ROOT / "requirements" / "ci.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    not_in_ci = {"peers", "deepspeed"}
    extras = [names for extra, names in PROJECT["optional-dependencies"].items() if extra not in not_in_ci]
    for group in (PROJECT["dependencies"], *extras):
        for requirement in map(Requirement, group):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in requirements/ci.txt; run `make lock`"
            assert pin in requirement.specifier, f"{requirement} does not allow {pin}; run `make lock`"
