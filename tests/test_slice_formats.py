"""DICOM, NumPy arrays, volumes and pictures too large to be decoded, as predict, evaluate and serve read them."""

from __future__ import annotations

import gzip
import random
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from picture_mutations import (
    KINDS,
    dicom_bytes,
    mutated_picture,
    npy_bytes,
    picture_bytes,
    slice_pixels,
    valid_pictures,
)
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from hf_kdmri.data.picture_limits import MAX_PIXELS, PictureError
from hf_kdmri.data.pictures import decode_picture, find_images, stored_mode
from hf_kdmri.data.pixels import window_to_uint8
from hf_kdmri.inference import decode_image

WIDE = slice_pixels(high=4000)
GREY = slice_pixels().astype(np.uint8)


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(decode_picture(encoded, refuse_constant=True))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_dicom_is_windowed_by_its_percentiles(syntax) -> None:
    seen = pixels(dicom_bytes(WIDE, syntax, WindowCenter="10", WindowWidth="5"))
    np.testing.assert_array_equal(seen, window_to_uint8(WIDE)[0])
    assert len(np.unique(seen)) > 200, "saturated"


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "3.5", "RescaleIntercept": "-1024"},
        {"BitsStored": 12, "HighBit": 11},
        {"PixelRepresentation": 1},
        {"NumberOfFrames": 1},
    ],
)
def test_what_only_scales_the_intensities_changes_nothing(elements) -> None:
    np.testing.assert_allclose(pixels(dicom_bytes(WIDE, **elements)).astype(int), window_to_uint8(WIDE)[0], atol=1)


def test_a_negative_slope_inverts() -> None:
    seen = pixels(dicom_bytes(WIDE, RescaleSlope="-1", RescaleIntercept="4000"))
    np.testing.assert_array_equal(seen, window_to_uint8(4000 - WIDE.astype(int))[0])


@pytest.mark.parametrize("raw", [WIDE, GREY, WIDE.astype(np.int16) - 2000], ids=["16-bit", "8-bit", "signed"])
def test_monochrome1_is_inverted(raw) -> None:
    bright = pixels(dicom_bytes(raw)).astype(int)
    dark = pixels(dicom_bytes(raw, PhotometricInterpretation="MONOCHROME1")).astype(int)
    np.testing.assert_allclose(bright + dark, 255, atol=1)


def test_8_bit_dicom_and_rgb_are_the_same_picture_as_png() -> None:
    np.testing.assert_array_equal(pixels(dicom_bytes(GREY)), GREY)
    colour = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
    np.testing.assert_array_equal(pixels(dicom_bytes(colour)), colour)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_does_not_spoil_the_window(photometric) -> None:
    raw = WIDE.astype(np.int16) + 100
    padded = raw.copy()
    padded[:6] = -32768
    elements = {"PixelPaddingValue": -32768, "PhotometricInterpretation": photometric}
    seen = pixels(dicom_bytes(padded, **elements))
    assert (seen[:6] == 0).all()
    inside = pixels(dicom_bytes(raw, PhotometricInterpretation=photometric))[6:]
    np.testing.assert_allclose(seen[6:].astype(int), inside, atol=2)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (dicom_bytes(WIDE, NumberOfFrames=4), "holds 4 frames, expected one"),
        (dicom_bytes(WIDE, PixelData=None), "without pixel data"),
        (dicom_bytes(WIDE, Rows=None), "Rows missing"),
        (dicom_bytes(WIDE, Rows=60_000, Columns=60_000), "more than the 64,000,000"),
        (dicom_bytes(WIDE, Rows=49), "cannot be decoded as DICOM"),
        (dicom_bytes(GREY, PhotometricInterpretation="PALETTE COLOR"), "photometric interpretation PALETTE COLOR"),
        (dicom_bytes(np.stack([GREY] * 3, -1), PhotometricInterpretation="YBR_FULL"), "interpretation YBR_FULL and 3"),
        (dicom_bytes(np.stack([WIDE] * 3, -1)), "colour DICOM of 16 bits"),
        (dicom_bytes(WIDE, DeflatedExplicitVRLittleEndian), "deflated DICOM"),
        (dicom_bytes(WIDE, JPEG2000Lossless, Rows=47), "header and compressed frame differ in size"),
        (dicom_bytes(WIDE * 0 + 7), "is constant"),
        (dicom_bytes(WIDE, RescaleSlope="0", RescaleIntercept="1"), "is constant"),
        (dicom_bytes(WIDE * 0, PixelPaddingValue=0), "nothing but padding"),
        (dicom_bytes(WIDE)[:800], "cannot be decoded as DICOM"),
        (npy_bytes(np.zeros((4, 8, 8))), "shape (4, 8, 8), expected (height, width)"),
        (npy_bytes(np.zeros((0, 8))), "8 x 0 pixels"),
        (npy_bytes(np.array([[{}]])), "numbers of type object"),
        (npy_bytes(GREY > 3), "numbers of type bool"),
        (npy_bytes(WIDE)[:-1], "does not hold the 48 x 40 numbers"),
        (npy_bytes(np.full((8, 8), np.inf)), "not finite"),
        (b"\0" * 344 + b"n+1\0" + b"\0" * 99, "is NIfTI, a volume"),
        (gzip.compress(b"\0" * 344 + b"n+1\0" + b"\0" * 9999, mtime=0), "is NIfTI, a volume"),
        (gzip.compress(b"what", mtime=0), "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
    ],
)
def test_what_is_not_one_slice_is_refused_with_a_reason(encoded, reason) -> None:
    with pytest.raises(PictureError) as refused:
        decode_picture(encoded, refuse_constant=True)
    assert reason in str(refused.value)
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "says", "package"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS Lossless", "python-gdcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "JPEG Lossless", "python-gdcm"),
        ("JPGExtended.dcm", "JPEG Extended (Process 2 and 4)", "pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_a_compression_without_a_decoder_is_named(name, says, package) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    with pytest.raises(PictureError, match=f"pip install {package}") as refused:
        decode_picture(path.read_bytes())
    assert f"compressed as {says}" in str(refused.value)


def test_the_compressed_and_the_plain_file_of_one_scanner_are_one_picture() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    expected = pixels((folder / "MR_small.dcm").read_bytes())
    for name in ("implicit", "bigendian", "RLE", "jp2klossless"):
        np.testing.assert_array_equal(pixels((folder / f"MR_small_{name}.dcm").read_bytes()), expected)


def test_without_pydicom_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(PictureError, match=r"pip install 'hf_kdmri\[dicom\]'"):
        decode_picture(dicom_bytes(WIDE))


def test_arrays_are_read_like_pictures() -> None:
    for array in (WIDE, WIDE.astype(">i4"), WIDE.astype(np.float32), np.asfortranarray(WIDE), WIDE.astype(np.float16)):
        np.testing.assert_allclose(pixels(npy_bytes(array)).astype(int), window_to_uint8(WIDE)[0], atol=1)
    np.testing.assert_array_equal(pixels(npy_bytes(GREY)), GREY)


def test_one_slice_in_every_format_is_one_picture() -> None:
    wide = [picture_bytes(Image.fromarray(WIDE), form) for form in ("PNG", "TIFF")]
    for encoded in [*wide, dicom_bytes(WIDE), npy_bytes(WIDE)]:
        np.testing.assert_array_equal(np.asarray(decode_image(encoded))[..., 0], window_to_uint8(WIDE)[0])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 12_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side) -> None:
    npy = npy_bytes(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }", f"({side},{side}),}}".encode())
    for encoded in (png_that_claims(side, side), dicom_bytes(WIDE, Rows=min(side, 65_535), Columns=65_535), npy):
        tracemalloc.start()
        with pytest.raises(PictureError, match=r"pixels|\.npy header"):
            decode_picture(encoded)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22 < MAX_PIXELS


def test_dicom_files_are_found_without_a_suffix(tmp_path) -> None:
    (tmp_path / "CD").mkdir()
    for name in ("a.dcm", "CD/IM0001", "CD/1.2.840.5", "CD/DICOMDIR"):
        (tmp_path / name).write_bytes(dicom_bytes(WIDE))
    for name in ("CD/README", "CD/LOG.1", "CD/x.exe"):
        (tmp_path / name).write_bytes(b"nothing")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert sorted(found) == ["CD/1.2.840.5", "CD/IM0001", "a.dcm"]


def test_training_sets_do_not_take_what_datasets_cannot_decode() -> None:
    for encoded in (dicom_bytes(WIDE), npy_bytes(WIDE)):
        with pytest.raises(PictureError, match="save it as 16-bit PNG"):
            stored_mode(encoded)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_read_or_refused(kind) -> None:
    """`benchmarks/fuzz_readers.py` does the same at length, in processes whose memory it watches."""
    for encoded in valid_pictures(kind):
        assert decode_image(encoded).mode == "RGB"
    verdicts = {True: 0, False: 0}
    for number in range(100):
        try:
            decode_image(mutated_picture(kind, random.Random(f"test {kind} {number}")))
            verdicts[True] += 1
        except PictureError:
            verdicts[False] += 1
    assert min(verdicts.values()) > 5
