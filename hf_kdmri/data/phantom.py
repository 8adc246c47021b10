"""Generated slices in the published layout, so that the demo and the tests read them as they read the real data."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.phantom_anatomy import draw_anatomy, draw_lesion, draw_scan, draw_slice
from hf_kdmri.data.splits import group_folds

GENERATOR_VERSION = 1  # raise it when the same arguments give other slices
MARKER = "phantom.json"
_PUBLISHED_SLICES = (708, 1426, 930)
_PUBLISHED_GROUPS = (82, 65, 62)
_HEADER = b"MATLAB 7.3 MAT-file, Platform: hf_kdmri phantom, generated slice, not a patient HDF5 schema 1.00 ."


@dataclass(frozen=True)
class _Recipe:
    slices: int
    patients: int
    size: int
    seed: int
    version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        if self.patients < 3 or self.slices < 4 or self.slices < self.patients:
            raise ValueError(
                f"slices={self.slices}, patients={self.patients}: give at least 3 patients (one of each class), "
                f"4 slices and one slice per patient"
            )
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size={self.size}: give a side of 32 to 1024 pixels")


def write_phantom_archives(
    out_dir: str | Path, *, slices: int = 240, patients: int = 48, size: int = 128, seed: int = 0
) -> Path:
    """Write generated slices as the four published zips of MATLAB v7.3 files, with `cvind.mat` beside them.

    Classes come in about the published proportions, with meningioma first in slice order, then glioma, then pituitary.
    Some gliomas have repeat scans: PIDs that differ in a letter suffix and form one patient group. No PID is a
    published one. The same arguments give the same files; where they lie there already, nothing is written.

    Args:
        out_dir: Folder for the archives; made if it does not exist.
        slices: Number of slices. Default 240.
        patients: Number of patient groups. Default 48; 20 or more give every fold every class.
        size: Side of the images in pixels. Default 128.
        seed: Seed of everything drawn. Default 0.

    Returns:
        `out_dir`, as a path.

    Raises:
        ValueError: fewer slices than patients, fewer than 3 patients, or a size outside 32-1024.
        FileExistsError: the folder holds other `.zip` or `.mat` files.
    """
    recipe = _Recipe(slices, patients, size, seed)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    names = [f"brainTumorDataPublic_{first}-{last}.zip" for first, last in _quarters(slices)]
    ours = _files_of_earlier_run(out)
    strangers = sorted(
        path.name for path in out.iterdir() if path.suffix.lower() in (".zip", ".mat") and path.name not in ours
    )
    if strangers:
        raise FileExistsError(
            f"{out}: holds {', '.join(strangers[:4])}, which no earlier phantom run wrote; give an empty folder"
        )
    marker = {"generated": True, **asdict(recipe), "files": [*names, "cvind.mat"]}
    if ours and json.loads((out / MARKER).read_text()) == marker and all((out / name).exists() for name in ours):
        return out
    for name in ours:
        (out / name).unlink(missing_ok=True)
    _write_json(out / MARKER, {**marker, "complete": False})  # so that a run cut short can be repeated
    labels, pids = [], []
    drawn = _draw_all(recipe)
    for name, (first, last) in zip(names, _quarters(slices), strict=True):
        with _AtomicZip(out / name) as archive:
            for number in range(first, last + 1):
                label, pid, image, border = next(drawn)
                labels.append(label)
                pids.append(pid)
                archive.writestr(zipfile.ZipInfo(f"{number}.mat"), mat_bytes(label, pid, image, border))
    _write_cvind(out / "cvind.mat", np.array(group_folds(pids, labels)) + 1)  # by PID, as the authors did
    _write_json(out / MARKER, marker)
    return out


def mat_bytes(label: int, pid: str, image: np.ndarray, border: np.ndarray, mask: np.ndarray | None = None) -> bytes:
    """Encode one slice as MATLAB v7.3 does: HDF5 behind a 512-byte user block, arrays column-major.

    Args:
        label: Index into `LABEL_NAMES`; stored as 1-3.
        pid: Patient id.
        image: (H, W) pixels, of the type to store.
        border: (K, 2) outline as x, y in pixels.
        mask: (H, W), not 0 inside the tumour. Default: the outline, filled.
    """
    if mask is None:
        canvas = Image.new("L", (image.shape[1], image.shape[0]))
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in border.tolist()], fill=1, outline=1)
        mask = np.asarray(canvas)
    fields = {
        "PID": (np.array([[ord(character)] for character in pid], dtype=np.uint16), "char"),
        "image": (image.T, str(image.dtype)),
        "label": (np.array([[label + 1.0]]), "double"),
        "tumorBorder": (np.asarray(border, np.float64).reshape(-1, 1), "double"),
        "tumorMask": (mask.astype(np.uint8).T, "logical"),
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        group = file.create_group("cjdata")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, (value, matlab_class) in fields.items():
            packed = {"compression": "gzip", "compression_opts": 3} if value.size > 1024 else {}
            dataset = group.create_dataset(name, data=value, **packed)
            dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)
    data = bytearray(buffer.getvalue())
    data[:128] = _HEADER[:124].ljust(124) + b"\x00\x02IM"
    return bytes(data)


def draw_one_of_each_class(*, size: int = 256, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw an axial slice of each class, of three patients.

    Args:
        size: Side of the images in pixels. Default 256.
        seed: Of everything drawn. Default 0.

    Returns:
        By class name, (size, size) raw intensities.
    """
    drawn = {}
    for label, name in enumerate(LABEL_NAMES):
        rng = np.random.default_rng((seed, label, GENERATOR_VERSION))
        anatomy, lesion = draw_anatomy(rng, size), draw_lesion(rng, label)
        drawn[name], _ = draw_slice(rng, anatomy, draw_scan(rng), lesion, 0, 0.0, size)
    return drawn


def _draw_all(recipe: _Recipe) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """Yield label, PID, image and border of every slice in order of slice number."""
    rng = np.random.default_rng((recipe.seed, recipe.version))
    groups = _share(recipe.patients, _PUBLISHED_GROUPS, at_least=(1, 1, 1))
    per_class = _share(recipe.slices, _PUBLISHED_SLICES, at_least=groups)
    drawn_ids: set[int] = set()
    for label in range(3):
        for slices in _share(per_class[label], rng.gamma(2.0, 1.0, groups[label]) + 0.2, at_least=[1] * groups[label]):
            anatomy, lesion = draw_anatomy(rng, recipe.size), draw_lesion(rng, label)
            for pid, count in _scans(rng, label, slices, drawn_ids):
                scan = draw_scan(rng)
                planes = np.sort(rng.integers(0, 3, count))
                for plane in planes.tolist():
                    depth = rng.uniform(-1, 1)
                    yield label, pid, *draw_slice(rng, anatomy, scan, lesion, plane, depth, recipe.size)


def _scans(rng: Generator, label: int, slices: int, drawn_ids: set[int]) -> list[tuple[str, int]]:
    """A patient's PIDs with the number of slices of each; ids of 5, 6, 8 or 9 characters, none of them published."""
    number = int(rng.integers(10000, 90000))  # published ids of 5 digits begin with 9
    while number in drawn_ids:
        number = int(rng.integers(10000, 90000))
    drawn_ids.add(number)
    if label != 1 or rng.random() < 0.2:
        return [(str(number) if rng.random() < 0.2 else f"9{number}", slices)]  # published ones of 6 begin with 1
    scans = min(slices, int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])))
    suffixes = ["", "B", "C"][:scans] if rng.random() < 0.8 else ["C", "D", "G"][:scans]
    counts = _share(slices, [1.0] * scans, at_least=[1] * scans)
    return [(f"MR9{number}{suffix}", count) for suffix, count in zip(suffixes, counts, strict=True)]


def _share(total: int, weights: npt.ArrayLike, at_least: npt.ArrayLike) -> list[int]:
    """Divide `total` in proportion to the weights, giving each its least first."""
    shares = np.array(at_least, dtype=int)
    ideal = np.array(weights, dtype=float) / np.sum(weights) * total
    for _ in range(total - int(shares.sum())):
        shares[np.argmax(ideal - shares)] += 1
    return shares.tolist()


def _quarters(slices: int) -> list[tuple[int, int]]:
    edges = [slices * part // 4 for part in range(5)]
    return [(first + 1, last) for first, last in pairwise(edges)]


def _files_of_earlier_run(out: Path) -> list[str]:
    marker = out / MARKER
    return [Path(name).name for name in json.loads(marker.read_text())["files"]] if marker.exists() else []


def _write_cvind(path: Path, folds: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w", userblock_size=512) as file:
        file.create_dataset("cvind", data=folds[None].astype(np.float64)).attrs["MATLAB_class"] = np.bytes_("double")
    os.replace(temporary, path)


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


class _AtomicZip:
    """A zip that appears under its name only when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> zipfile.ZipFile:
        self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED)
        return self._archive

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._archive.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink()
