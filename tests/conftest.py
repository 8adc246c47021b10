"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["meningioma", "glioma", "pituitary"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Nothing in the tests may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Know the markers of transformers' own tests, which test_peer_models.py runs."""
    if "KDMRI_TRANSFORMERS_TESTS" in os.environ:
        kinds = ("accelerate_tests", "torch_compile_test", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test")
        for kind in (*kinds, "order"):
            config.addinivalue_line("markers", f"{kind}: of transformers' tests")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Runs a script of experiments/ in this process, by its name and its arguments, and gives its module."""
    monkeypatch.syspath_prepend(ROOT / "experiments")

    def run(name: str, *arguments: object) -> ModuleType:
        script = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        script.main()
        return script

    return run


@pytest.fixture(scope="session")
def figshare_dir() -> Path:
    """The folder of real slices (images/, slices.csv, cvind.mat)."""
    folder = Path(os.environ.get("KDMRI_FIGSHARE_DIR", ROOT.parent / "shared" / "figshare"))
    if not (folder / "slices.csv").is_file():
        pytest.skip(f"no real slices in {folder}; set KDMRI_FIGSHARE_DIR to a folder with slices.csv and images/")
    return folder


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty phantom slices of twenty patients in the published layout."""
    from hf_kdmri.data import write_phantom_archives

    return write_phantom_archives(tmp_path_factory.mktemp("phantoms") / "archives", slices=60, patients=20, size=64)
