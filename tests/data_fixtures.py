"""Small published-layout files for the tests of the data room."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from hf_kdmri.data.phantom import mat_bytes

SIZE = 40
BORDER = np.array([[5.0, 20.0], [15.0, 18.0], [14.0, 33.0], [6.0, 30.0]])  # left of the middle, below it


def asymmetric_image(size: int = SIZE) -> np.ndarray:
    """int16 pixels that are bright in the top right corner, so that any flip or transposition shows."""
    image = np.arange(size * size, dtype=np.int16).reshape(size, size) % 97
    image[: size // 4, -size // 4 :] += 1000
    return image


def good_mat(label: int = 1, pid: str = "MR900001B", image: np.ndarray | None = None) -> bytes:
    """One valid slice."""
    return mat_bytes(label, pid, asymmetric_image() if image is None else image, BORDER)


def edited_mat(edit: Callable[[h5py.Group], None], data: bytes | None = None) -> bytes:
    """A valid slice whose `cjdata` group was changed."""
    buffer = io.BytesIO(data or good_mat())
    with h5py.File(buffer, "r+") as file:
        edit(file["cjdata"])
    return buffer.getvalue()


def with_field(name: str, value: object, **options: object) -> bytes:
    """A valid slice with one field replaced."""

    def edit(group: h5py.Group) -> None:
        del group[name]
        group.create_dataset(name, data=value, **options)

    return edited_mat(edit)


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip with the given members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(folder: Path) -> dict[str, bytes]:
    """All members of all zips in a folder."""
    found = {}
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            found.update({name: archive.read(name) for name in archive.namelist()})
    return found
