"""One stored picture, whatever its kind, as 8-bit grey or RGB, upright."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_kdmri.data.pixels import window_to_uint8

_GREY_MODES = {"1", "L", "LA", "La"}
_WIDE_MODES = {"I", "F"}  # PIL's modes of more than 8 bits: I, I;16, I;16B, F


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm"})


class PictureError(ValueError):
    """A picture that cannot be read; the message says why and what to do."""


def find_images(path: str | Path) -> Iterator[Path]:
    """Yield the file itself, or the image files (by suffix) at any depth of a folder, in order of names.

    Raises:
        FileNotFoundError: There is no such file or folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected an image or a folder of images")
    if path.is_file():
        yield path
        return
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def read_picture_bytes(cell: Mapping[str, Any]) -> bytes:
    """Return the encoded file of a cell of `datasets.Image(decode=False)`: `{"bytes": …, "path": …}`.

    Raises:
        PictureError: the cell is empty, or its file is gone.
    """
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise PictureError("is empty; remove the row")
    if cell.get("bytes") is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be opened ({error.strerror}); restore the file or remove the row") from error


def is_wide(mode: str) -> bool:
    """Whether a PIL mode holds more than 8 bits per pixel and channel."""
    return mode.split(";")[0] in _WIDE_MODES


def is_grey(mode: str) -> bool:
    """Whether a PIL mode holds one channel of intensities, an alpha channel not counted."""
    return mode in _GREY_MODES or is_wide(mode)


def stored_mode(encoded: bytes) -> str:
    """PIL's mode of an encoded picture, from its header alone.

    Raises:
        PictureError: this is no picture that PIL knows.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(_unreadable(error)) from error


def decode_picture(encoded: bytes) -> Image.Image:
    """Decode a picture whole: turned as its EXIF orientation says, one frame, 8 bits.

    Pictures of more than 8 bits (16-bit, 32-bit, float) are windowed by their own percentiles 0.1 and 99.9, as the
    Figshare slices and the pictures given to `kdmri predict` are; PIL would clip them at 255. A constant one becomes
    black. Palettes are resolved and an alpha channel is dropped, as transformers' pipelines do.

    Args:
        encoded: the file's bytes.

    Returns:
        Mode "L" for grey pictures, "RGB" for all others.

    Raises:
        PictureError: damaged, no picture, several frames, or pixels that are not finite.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            # A phone's MPO holds a preview beside the picture; any other second frame is another slice.
            if (frames := getattr(opened, "n_frames", 1)) > 1 and opened.format != "MPO":
                raise PictureError(f"holds {frames} frames, expected one; save each frame as a picture of its own")
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(_unreadable(error)) from error
    return to_8_bit(image)


def to_8_bit(image: Image.Image) -> Image.Image:
    """Convert a decoded picture to mode "L" or "RGB", as `decode_picture` does.

    Raises:
        PictureError: pixels that are not finite.
    """
    if is_wide(image.mode):
        raw = np.asarray(image)
        if not np.isfinite(raw).all():
            raise PictureError("has pixels that are not finite (NaN or infinite); mend or remove it")
        return Image.fromarray(window_to_uint8(raw)[0])
    return image.convert("L" if is_grey(image.mode) else "RGB")


def _unreadable(error: Exception) -> str:
    reason = str(error).split(" <_io.BytesIO")[0]  # an address in memory helps nobody
    return f"cannot be read as a picture ({reason}); save it again or remove it"
