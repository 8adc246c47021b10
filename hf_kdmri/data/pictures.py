"""One stored picture, whatever its kind, as 8-bit grey or RGB, upright."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hf_kdmri.data import npy_picture
from hf_kdmri.data.dicom import is_dicom, looks_like_dicom, read_dicom
from hf_kdmri.data.picture_limits import MAX_PIXELS, PictureError, check_size
from hf_kdmri.data.pixels import window_to_uint8
from hf_kdmri.wording import counted

MIN_GREY_LEVELS = 16  # of an 8-bit picture; with fewer, `doubt` is told
_GREY_MODES = {"1", "L", "LA", "La"}
_WIDE_MODES = {"I", "F"}  # PIL's modes of more than 8 bits: I, I;16, I;16B, F
# Pillow knows others, of which some start a program (EPS) and none is a slice.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".jp2", ".dcm", ".dicom", ".npy"}
)
_NIFTI = {b"ni1\0", b"n+1\0", b"ni2\0", b"n+2\0"}  # at byte 344 of version 1, at byte 4 of version 2


def find_images(path: str | Path) -> Iterator[Path]:
    """Yield the file itself, or the image files at any depth of a folder, in order of names.

    In a folder, files are taken by suffix, and DICOM files without one by their first bytes.

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
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES or looks_like_dicom(path):
                yield path


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
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            return image.mode
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
        raise _unreadable(error, encoded) from error


def decode_picture(encoded: bytes, *, refuse_constant: bool = False) -> Image.Image:
    """Decode a picture whole: turned as its EXIF orientation says, one frame, 8 bits.

    Pictures of more than 8 bits (16-bit, 32-bit, float; most DICOM files) are windowed by their own percentiles 0.1 and
    99.9, as the Figshare slices and the pictures given to `kdmri predict` are; PIL would clip them at 255. A constant
    one becomes black. Palettes are resolved and an alpha channel is dropped, as transformers' pipelines do.

    Args:
        encoded: the file's bytes: PNG, JPEG, TIFF, BMP, GIF, WebP, PGM, JPEG 2000, single-frame DICOM, or a 2-D `.npy`.
        refuse_constant: refuse a picture of more than 8 bits that its window would leave without content.

    Returns:
        Mode "L" for grey pictures, "RGB" for all others.

    Raises:
        PictureError: damaged, no picture, a volume, several frames, more pixels than `picture_limits.MAX_PIXELS` by its
            header, or pixels that are not finite.
    """
    if is_dicom(encoded[:132]):
        return _array_to_8_bit(read_dicom(encoded), refuse_constant)
    if encoded.startswith(npy_picture.MAGIC):
        return _array_to_8_bit(npy_picture.read_npy(encoded), refuse_constant)
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            check_size(*opened.size)
            # A phone's MPO holds a preview beside the picture; any other second frame is another slice.
            if (frames := getattr(opened, "n_frames", 1)) > 1 and opened.format != "MPO":
                raise PictureError(f"holds {frames} frames, expected one; save each frame as a picture of its own")
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:  # before its size could be asked for
        raise PictureError(
            f"has far more than the {MAX_PIXELS:,} pixels that are read; save the slice at its own size"
        ) from error
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
        raise _unreadable(error, encoded) from error
    return to_8_bit(image, refuse_constant=refuse_constant)


def doubt(image: Image.Image) -> str | None:
    """Say why a decoded picture may show no head, or None where nothing speaks against it.

    A scan has a grey level for most of 0 to 255. What has fewer than `MIN_GREY_LEVELS` is blank, a mask, or a
    drawing. That alone is looked at: a photograph of anything passes.

    Args:
        image: 8 bits, as `decode_picture` returns it; colour is taken by its luminance.

    Example:
        >>> doubt(Image.new("L", (64, 64), 7))
        'has 1 grey level, where a scan has many: it may not show a head'
    """
    levels = sum(count > 0 for count in image.convert("L").histogram())
    if levels >= MIN_GREY_LEVELS:
        return None
    return f"has {counted(levels, 'grey level')}, where a scan has many: it may not show a head"


def to_8_bit(image: Image.Image, *, refuse_constant: bool = False) -> Image.Image:
    """Convert a decoded picture to mode "L" or "RGB", as `decode_picture` does.

    Raises:
        PictureError: pixels that are not finite, or, if asked for, a constant picture of more than 8 bits.
    """
    if is_wide(image.mode):
        return _array_to_8_bit(np.asarray(image), refuse_constant)
    return image.convert("L" if is_grey(image.mode) else "RGB")


def _array_to_8_bit(raw: NDArray[np.number], refuse_constant: bool) -> Image.Image:
    if raw.dtype == np.uint8:
        return Image.fromarray(raw)
    if not np.isfinite(raw).all():
        raise PictureError("has pixels that are not finite (NaN or infinite); mend or remove it")
    pixels, *_ = window_to_uint8(raw)
    if refuse_constant and not pixels.any():
        raise PictureError("is constant between its percentiles 0.1 and 99.9, so there is nothing to classify")
    return Image.fromarray(pixels)


def _unreadable(error: Exception, encoded: bytes) -> PictureError:
    head = encoded[:352]
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(encoded, 352)
        except zlib.error:
            head = b""
    if head[344:348] in _NIFTI or head[4:8] in _NIFTI:
        return PictureError("is NIfTI, a volume; save the slice that you mean as PNG, .npy or DICOM")
    if is_dicom(head) or head.startswith(npy_picture.MAGIC):
        return PictureError("is DICOM or .npy, which only predict, evaluate and serve read; save it as 16-bit PNG")
    reason = str(error).split(" <_io.BytesIO")[0]  # an address in memory helps nobody
    return PictureError(f"cannot be read as a picture ({reason}); save it again or remove it")
