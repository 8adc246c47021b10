#!/usr/bin/env python
"""Build what would be uploaded to PyPI and check it: contents, metadata, versions, and that it works when installed.

    make release-check

Runs in an environment that has build, twine and cffconvert; --site-packages is where the dependencies are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hf_kdmri", "dataset_script", "model_cards")
LARGEST_FILE = 200_000  # bytes; the largest is a table of 1,000 rows
LARGE = {"hf_kdmri/space/onnxruntime-web/ort-wasm-simd-threaded.wasm"}  # the page runs without another server
LARGEST_WHEEL = 10_000_000
# In a process that sees the installed wheel and the dependencies, and not the checkout.
SMOKE = """
import importlib, pkgutil, sys
from pathlib import Path
prefix, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
count = 0
for name in names:
    package = importlib.import_module(name)
    assert prefix in Path(package.__file__).resolve().parents, f"{name} came from {package.__file__}"
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
import hf_kdmri
for name in hf_kdmri.__all__:
    getattr(hf_kdmri, name)
print(f"{count} modules imported, version {hf_kdmri.__version__}")
"""


def main() -> None:
    """Check everything; the first fault ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site-packages", type=Path, required=True, help="folder with the dependencies")
    arguments = parser.parse_args()
    version = same_version_everywhere()
    call("cffconvert", "--validate", "--infile", str(ROOT / "CITATION.cff"))
    with tempfile.TemporaryDirectory() as folder:
        dist = Path(folder)
        call(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
        wheel, source = dist / f"hf_kdmri-{version}-py3-none-any.whl", dist / f"hf_kdmri-{version}.tar.gz"
        call(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source))
        check_wheel(wheel)
        check_source(source)
        check_installed(wheel, arguments.site_packages)
    tell_of_placeholders()
    print(f"hf_kdmri {version} can be built, installed and uploaded")


def same_version_everywhere() -> str:
    """The version of the package, which CITATION.cff and the changelog must name too."""
    version = found(r'^__version__ = "(.+)"', "hf_kdmri/__init__.py")
    cited = found(r"^version: (.+)$", "CITATION.cff")
    if cited != version:
        sys.exit(f"hf_kdmri/__init__.py says {version}, CITATION.cff says {cited}")
    heading = found(r"^## \[(\d.*?)\]|^## \[Unreleased\]", "CHANGELOG.md")
    if heading is None:
        print(f"CHANGELOG.md: not released yet (first heading is Unreleased), the version will be {version}")
    elif heading != version:
        sys.exit(f"hf_kdmri/__init__.py says {version}, the newest in CHANGELOG.md is {heading}")
    return str(version)


def tell_of_placeholders() -> None:
    """Name the pages whose links still need the repository's owner on GitHub."""
    pages = [
        path for path in ("README.md", "notebooks/walkthrough.ipynb") if "/OWNER/" in (ROOT / path).read_text("utf-8")
    ]
    if pages:
        print(f"before the first upload: put the owner of the repository for OWNER in {' and '.join(pages)}")


def found(pattern: str, name: str) -> str | None:
    """The first group of a pattern in a file of the repository."""
    match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        sys.exit(f"{name} has no line like {pattern}")
    return match[1]


def check_wheel(wheel: Path) -> None:
    """Every tracked file of the packages is in it, nothing else is, and nothing is large."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist() if not item.is_dir()}
    inside = {name for name in sizes if ".dist-info/" not in name}
    tracked = set(call("git", "-C", str(ROOT), "ls-files", *PACKAGES, capture=True).split())
    # The page lies at the top of the repository and inside the package of a wheel; see setup.py.
    page = call("git", "-C", str(ROOT), "ls-files", "space", capture=True).split()
    tracked |= {f"hf_kdmri/{name}" for name in page}
    refuse("files are missing in the wheel (package-data in pyproject.toml?)", tracked - inside)
    refuse("files in the wheel that git does not know", inside - tracked)
    refuse(f"files above {LARGEST_FILE} bytes in the wheel", {n for n in inside - LARGE if sizes[n] > LARGEST_FILE})
    if wheel.stat().st_size > LARGEST_WHEEL:
        sys.exit(f"the wheel has {wheel.stat().st_size} bytes")
    print(f"wheel: {len(inside)} files, {wheel.stat().st_size} bytes")


def check_source(source: Path) -> None:
    """The source distribution holds the packages and the licence, and no models, runs or data."""
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}
    tracked = set(call("git", "-C", str(ROOT), "ls-files", *PACKAGES, "LICENSE", "README.md", capture=True).split())
    refuse("files are missing in the source distribution", tracked - names.keys())
    unwanted = (".safetensors", ".parquet", ".mat", ".zip", ".onnx", ".bin", ".pt")
    refuse("data or models in the source distribution", {name for name in names if name.endswith(unwanted)})
    print(f"source distribution: {len(names)} files, {source.stat().st_size} bytes")


def check_installed(wheel: Path, site_packages: Path) -> None:
    """Install without dependencies into a fresh environment; import every module; start the command."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        # With the checkout on the path, pip would find its metadata and install nothing.
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        call(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), cwd=folder, env=plain)
        # A .pth in that folder (the editable install) is not followed here, only packages are found.
        environment = {**plain, "PYTHONPATH": str(site_packages.resolve())}
        call(python, "-c", SMOKE, folder, *PACKAGES, cwd=folder, env=environment)
        call(str(Path(folder) / "bin" / "kdmri"), "--help", cwd=folder, env=environment, capture=True)


def refuse(what: str, names: set[str]) -> None:
    """End with the names, if there are any."""
    if names:
        sys.exit(f"{what}: {', '.join(sorted(names))}")


def call(*command: str, capture: bool = False, cwd: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE if capture else None, cwd=cwd, env=env)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command[:4])}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
