"""One frame of a DICOM file as intensities, read with pydicom (extra `dicom`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hf_kdmri.data.picture_limits import PictureError, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

# Nothing else is parsed: no patient's name can end in a message, and damage elsewhere does no harm.
_TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 90, 91)}  # what Pillow decodes
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_MAX_RLE_BYTES = 2**23  # of which 64 times as much can come


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes are enough) is DICOM."""
    return head[128:132] == b"DICM"


def looks_like_dicom(path: Path) -> bool:
    """Whether a file without a telling suffix (`IM0001`, `1.2.840.113619.2`) is DICOM; a DICOMDIR holds no picture."""
    if (path.suffix and not path.suffix[1:].isdigit()) or path.name == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def read_dicom(encoded: bytes) -> NDArray[np.number]:
    """Decode the one frame of a DICOM file.

    The file's rescaling is applied, padding takes the smallest intensity of the rest, and MONOCHROME1, in which large
    numbers are dark, is inverted. Windows that the file suggests (VOI LUT) are not applied: the picture is windowed by
    its own percentiles like every other.

    Args:
        encoded: The file's bytes, with preamble.

    Returns:
        (H, W) intensities; uint8 only where the file holds plain unsigned 8-bit intensities. (H, W, 3) uint8 for RGB.

    Raises:
        PictureError: pydicom is not installed, several frames, no pixels, colour other than 8-bit RGB, a compression
            that nothing here decodes, too large, or damaged.
    """
    try:
        import pydicom
    except ImportError as error:
        raise PictureError("is DICOM, which needs pydicom: pip install 'hf_kdmri[dicom]'") from error
    if _DEFLATED in encoded:  # pydicom would inflate it whole, however large it gets
        raise PictureError("is deflated DICOM, which is not read; save it uncompressed (dcmconv +te in.dcm out.dcm)")
    try:
        dataset = pydicom.dcmread(io.BytesIO(encoded), specific_tags=_TAGS)
        _check_header(dataset)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        _check_compression(dataset, syntax)
        return _intensities(dataset)
    except PictureError:
        raise
    except Exception as error:  # pydicom's parsers raise whatever the damaged bytes lead them to
        raise PictureError(f"cannot be decoded as DICOM ({_one_line(error)}); save it again, uncompressed") from error


def _check_header(dataset: Dataset) -> None:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise PictureError("is DICOM without pixel data (a report, a plan, a directory); give an image")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise PictureError(f"holds {frames} frames, expected one; save each slice as a file of its own")
    if missing := [name for name in ("Rows", "Columns", "BitsAllocated") if dataset.get(name) is None]:
        raise PictureError(f"is damaged DICOM: {' and '.join(missing)} missing; save it again")
    check_size(int(dataset.Columns), int(dataset.Rows))
    colour, samples = str(dataset.get("PhotometricInterpretation")), int(dataset.get("SamplesPerPixel") or 1)
    if colour in ("MONOCHROME1", "MONOCHROME2") and samples == 1:
        return
    if colour != "RGB" or samples != 3:
        raise PictureError(
            f"is DICOM with photometric interpretation {colour} and {samples} samples per pixel; expected MONOCHROME1, "
            "MONOCHROME2 or RGB; save it as one of these, or as PNG"
        )
    if dataset.BitsAllocated != 8:
        raise PictureError(f"is colour DICOM of {dataset.BitsAllocated} bits, expected 8; save it as PNG")


def _check_compression(dataset: Dataset, syntax: Any) -> None:
    """Refuse what cannot be decoded, and what is larger inside than the header says."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    if syntax is None:
        raise PictureError("is DICOM that does not name its transfer syntax; save it again")
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    package = "pylibjpeg pylibjpeg-libjpeg" if syntax == _JPEG_12_BIT else "python-gdcm"
    undecodable = PictureError(
        f"is DICOM compressed as {syntax.name}, for which no decoder is installed; save it uncompressed "
        f"(gdcmconv --raw in.dcm out.dcm), or install one that pydicom finds (pip install {package})"
    )
    if not decodable:
        raise undecodable
    if syntax not in _JPEG and syntax != _RLE:
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == _RLE:
        if len(frame) > _MAX_RLE_BYTES:
            raise PictureError(f"is DICOM with more than {_MAX_RLE_BYTES:,} bytes of RLE data; save it uncompressed")
        return
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inside:
            size = inside.size
    except UnidentifiedImageError as error:  # 12-bit JPEG for instance; another decoder may know it
        if [name for name in get_decoder(syntax).available_plugins if name != "pillow"]:
            return
        raise undecodable from error
    if size != (dataset.Columns, dataset.Rows):
        raise PictureError("is damaged DICOM: header and compressed frame differ in size; save it again")


def _intensities(dataset: Dataset) -> NDArray[np.number]:
    from pydicom.pixels import apply_modality_lut

    stored = dataset.pixel_array
    colour = (3,) if dataset.PhotometricInterpretation == "RGB" else ()
    if stored.shape != (dataset.Rows, dataset.Columns, *colour):
        raise PictureError(f"is damaged DICOM: its pixels are {stored.shape}; save it again")
    if colour:
        return np.ascontiguousarray(stored, np.uint8)
    # A slope and an intercept of their usual values must not make whole numbers floats.
    plain = "ModalityLUTSequence" not in dataset and (
        float(dataset.get("RescaleSlope", 1)),
        float(dataset.get("RescaleIntercept", 0)),
    ) == (1, 0)
    values = stored if plain else apply_modality_lut(stored, dataset)
    padding = _padding(stored, dataset)
    if padding.all():
        raise PictureError("is DICOM that holds nothing but padding")
    eight_bit = stored.dtype == np.uint8 and dataset.get("BitsStored") == 8 and plain and not padding.any()
    if not eight_bit and values.dtype.kind in "iu":
        values = values.astype(np.int64 if values.itemsize < 8 else np.float64)  # room for the inversion
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        kept = values[~padding]
        values = np.uint8(255) - values if eight_bit else kept.max() + kept.min() - values
    if padding.any():
        values = np.where(padding, values[~padding].min(), values)
    return values


def _padding(stored: NDArray[np.number], dataset: Dataset) -> NDArray[np.bool_]:
    """Pixels that the scanner did not fill, which would otherwise take part in the window."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"
