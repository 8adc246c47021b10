"""Damage valid pictures, at random and where it hurts: what the fuzzing script and the tests share."""

from __future__ import annotations

import gzip
import io
import random
import re
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import pydicom
from mutations import damaged
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

STRUCTURES = {
    "png": re.compile(rb"IHDR|PLTE|IDAT|IEND|tRNS|eXIf|iCCP|zTXt|tEXt"),
    "jpeg": re.compile(rb"\xff[\xc0-\xc4\xd8-\xe1\xfe]"),
    "tiff": re.compile(rb"II\*\x00|[\x00\x01\x02\x03\x11\x15\x16\x17\x53]\x01[\x01-\x05]\x00"),
    # groups 0002, 0028 and 7fe0, and the items of compressed pixels
    "dicom": re.compile(
        rb"\x02\x00[\x00-\x20]\x00|\x28\x00[\x00-\x11][\x00-\x30]|\xe0\x7f\x10\x00|\xfe\xff[\x00\xdd]\xe0"
    ),
    "npy": re.compile(rb"\x93NUMPY|descr|fortran_order|shape|\("),
    "gif": re.compile(rb"GIF8[79]a|[\x21\x2c\x3b]"),
    "webp": re.compile(rb"RIFF|WEBP|VP8[ XL]|ALPH|ANIM|ANMF|EXIF"),
    "bmp": re.compile(rb"BM|\x28\x00\x00\x00"),
    "nifti": re.compile(rb"\x5c\x01\x00\x00|\x1c\x02\x00\x00|\x03\x00[\x01-\x60]\x00|n[+][12]"),
}
KINDS = tuple(kind for kind in STRUCTURES if kind != "nifti")  # what Python reads; the page also cuts volumes


def slice_pixels(size: tuple[int, int] = (48, 40), high: int = 255) -> NDArray[np.uint16]:
    """An ellipse that is bright in its middle, (height, width), from 0 to `high`."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    return np.rint(high * np.clip(1 - x**2 / 0.6 - (y - 0.1) ** 2 / 0.8, 0, 1)).astype(np.uint16)


def dicom_bytes(pixels: NDArray[np.integer], syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A DICOM file.

    Args:
        pixels: (H, W), or (H, W, 3) for RGB; of 8, 16 or 32 bits.
        syntax: Transfer syntax: uncompressed in either byte order, RLE or JPEG 2000.
        **elements: More elements, or others than follow from the pixels, by keyword; None leaves one out. The highest
            bit follows from `BitsStored`.
    """
    colour = pixels.ndim == 3
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.PatientName = "Doe^Jane"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = elements.get("BitsStored", dataset.BitsStored) - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    ordered = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<"))
    dataset.PixelData = ordered.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    if syntax == JPEG2000Lossless:
        frame = io.BytesIO()
        Image.fromarray(pixels).save(frame, "JPEG2000", irreversible=False, no_jp2=True)
        dataset.PixelData = encapsulate([frame.getvalue()])
    elif syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def picture_bytes(image: Image.Image, form: str, **options: Any) -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as `numpy.save` writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def nifti_bytes(volume: NDArray[Any], version: int, affine: NDArray[np.floating] | None = None) -> bytes:
    """A NIfTI-1 or NIfTI-2 file of little-endian voxels (X, Y, Z); the affine (4, 4) says how it lies."""
    code, bits = {"u1": 2, "i2": 4, "f4": 16}[volume.dtype.str[1:]], 8 * volume.itemsize
    header = bytearray(352 if version == 1 else 544)
    sform = (np.eye(4) if affine is None else affine)[:3].ravel()
    if version == 1:
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, *volume.shape, 1, 1, 1, 1)
        struct.pack_into("<2h", header, 70, code, bits)
        struct.pack_into("<8f3f", header, 76, *[1] * 8, 352, 1, 0)  # spacing; offset, slope, intercept
        struct.pack_into("<2h", header, 252, 0, 1)
        struct.pack_into("<12f", header, 280, *sform)
        header[344:348] = b"n+1\0"
    else:
        struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", code, bits)
        struct.pack_into("<8q", header, 16, 3, *volume.shape, 1, 1, 1, 1)
        struct.pack_into("<8d", header, 104, *[1] * 8)
        struct.pack_into("<q2d", header, 168, 544, 1, 0)
        struct.pack_into("<2i", header, 344, 0, 1)
        struct.pack_into("<12d", header, 400, *sform)
    return bytes(header) + volume.tobytes(order="F")


@lru_cache(maxsize=len(STRUCTURES))
def valid_pictures(kind: str) -> tuple[bytes, ...]:
    """One slice in every form that a format has for it."""
    wide, grey = slice_pixels(high=4000), slice_pixels().astype(np.uint8)
    image, exif = Image.fromarray(grey), Image.Exif()
    exif[0x0112] = 6
    if kind == "npy":
        arrays = (grey, wide, wide.astype(np.float32), np.asfortranarray(wide.astype(">i4")), wide.astype(np.float16))
        return tuple(npy_bytes(array) for array in arrays)
    if kind == "dicom":
        return (
            dicom_bytes(wide, BitsStored=12, RescaleSlope="2", RescaleIntercept="-10"),
            dicom_bytes(grey, ImplicitVRLittleEndian, PhotometricInterpretation="MONOCHROME1"),
            dicom_bytes(np.stack([grey] * 3, axis=-1)),
            dicom_bytes(wide, RLELossless),
            dicom_bytes(wide, JPEG2000Lossless, PixelPaddingValue=0),
        )
    if kind == "nifti":
        volume = np.stack([wide.T // share for share in (3, 1, 2)], axis=-1)
        return tuple(
            nifti_bytes(volume.astype(dtype), version) for dtype, version in (("<i2", 1), ("<f4", 1), ("<u1", 2))
        )
    modes = {
        "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "jpeg": ("L", "RGB", "CMYK"),
        "tiff": ("L", "RGB", "CMYK"),
        "gif": ("1", "L", "P"),
        "webp": ("L", "RGB", "RGBA"),
        "bmp": ("1", "L", "P", "RGB"),
    }
    options = {"exif": exif} if kind in ("png", "jpeg", "tiff", "webp") else {}
    pictures = [picture_bytes(image.convert(mode), kind.upper(), **options) for mode in modes[kind]]
    if kind == "webp":
        pictures.append(picture_bytes(image, "WEBP", lossless=True))
    if kind == "jpeg":
        pictures.append(picture_bytes(image, "JPEG", progressive=True))
    if kind == "png":
        pictures.append(picture_bytes(Image.fromarray(wide), "PNG"))
    if kind == "tiff":
        pictures += [picture_bytes(Image.fromarray(wide), "TIFF", compression=c) for c in ("raw", "tiff_lzw")]
        pictures.append(picture_bytes(Image.fromarray(wide.astype(np.float32)), "TIFF", compression="tiff_deflate"))
    return tuple(pictures)


def mutated_picture(kind: str, rng: random.Random) -> bytes:
    """A picture with some damage; a few come out valid. Half of the PNG files get checksums that fit.

    Half of the NIfTI files are packed, some of these with more damage to the packed bytes.
    """
    data = damaged(rng.choice(valid_pictures(kind)), rng, STRUCTURES[kind], lambda: valid_pictures(kind))
    if kind == "png" and rng.random() < 0.5:
        return _with_checksums(data)
    if kind == "nifti" and rng.random() < 0.5:
        packed = gzip.compress(data, mtime=0)
        return packed if rng.random() < 0.7 else damaged(packed, rng, STRUCTURES[kind], lambda: (packed,))
    return data


def _with_checksums(data: bytes) -> bytes:
    """The PNG with each chunk's checksum made to fit, as far as its chunks can be followed."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)
