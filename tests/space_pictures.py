"""Pictures of every kind that the page reads, each with what Python makes of it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from picture_mutations import dicom_bytes, nifti_bytes
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from hf_kdmri.data.pixels import window_to_uint8
from hf_kdmri.inference import read_image

Pixels = NDArray[np.integer]


def head(height: int, width: int, seed: int, levels: int = 256) -> Pixels:
    """A bright, textured ellipse on black: (height, width) whole numbers below `levels`."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    waves = sum(np.sin(draw.uniform(2, 12) * x + draw.uniform(2, 12) * y + draw.uniform(0, 6)) for _ in range(4))
    spot = 2.5 * np.exp(-((x - draw.uniform(-0.4, 0.4)) ** 2 + (y - draw.uniform(-0.4, 0.4)) ** 2) / 0.02)
    inside = x**2 / 0.6 + y**2 / 0.8 < 1
    tissue = np.clip(0.4 + 0.08 * waves + 0.2 * spot + draw.normal(0, 0.02, x.shape), 0, 1)
    return np.where(inside, tissue * (levels - 1), 0).astype(np.uint16)


def grey(height: int, width: int, seed: int) -> Pixels:
    return head(height, width, seed).astype(np.uint8)


def colour(height: int, width: int, seed: int) -> Pixels:
    return np.stack([grey(height, width, seed + channel) for channel in range(3)], axis=-1)


def write_pictures(folder: Path) -> dict[str, Image.Image]:
    """Write one file of each kind; return what the model must be given for each, as `read_image` gives it."""
    draw = np.random.default_rng(9)
    image = Image.fromarray

    def save(name: str, picture: Image.Image, **options: Any) -> None:
        picture.save(folder / name, **options)

    save("grey.png", image(grey(256, 256, 1)))
    save("grey_small.png", image(grey(41, 37, 2)))
    save("grey_large.png", image(grey(700, 513, 3)))
    save("wide.png", image(grey(90, 300, 4)))
    save("rgb.png", image(colour(200, 201, 5)))
    rgba = np.dstack([colour(150, 150, 8), draw.integers(0, 256, (150, 150), np.uint8)])
    save("rgba.png", image(rgba, "RGBA"))
    save("grey_alpha.png", image(rgba[..., 2:], "LA"))
    save("palette.png", image(colour(180, 160, 11)).quantize(200), transparency=3)
    save("black_and_white.png", image(grey(130, 131, 14)).point(lambda level: 255 * (level > 100)).convert("1"))
    save("grey16.png", image(head(240, 255, 15, 4096)))
    save("grey16_full.png", image(head(64, 64, 16, 65536)))
    write_png(folder / "interlaced16.png", head(93, 77, 17, 3000), depth=16, interlaced=True)
    write_png(folder / "rgb16.png", np.dstack([head(60, 70, 18 + c, 65536) for c in range(3)]), depth=16)
    write_png(folder / "grey_4_bits.png", head(55, 43, 21, 16), depth=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned.png", image(grey(100, 140, 22)), exif=exif)
    save("turned.jpg", image(grey(200, 260, 23)), exif=exif, quality=92)
    exif[0x0112] = 7
    save("mirrored.jpg", image(colour(201, 260, 24)), exif=exif, quality=85, progressive=True)
    save("grey.jpg", image(grey(511, 512, 27)), quality=75)
    save("colour.jpg", image(colour(333, 321, 28)), quality=90)
    save("colour.bmp", image(colour(120, 125, 31)))
    save("grey.gif", image(grey(140, 120, 34)))
    save("lossless.webp", image(colour(160, 170, 35)), lossless=True)
    expected = {path.name: read_image(path) for path in sorted(folder.iterdir())}
    for name, (encoded, pixels) in DICOM.items():
        (folder / name).write_bytes(encoded)
        shown = pixels if pixels.dtype == np.uint8 else window_to_uint8(pixels)[0]
        expected[name] = image(shown).convert("RGB")
        assert np.array_equal(np.asarray(expected[name]), np.asarray(read_image(folder / name))), name
    return expected


_twelve, _signed, _eight = head(200, 190, 40, 4096), head(128, 120, 41, 2000).astype(np.int16) - 500, grey(99, 98, 42)
_dark = _twelve[_twelve > 0].min()
_padded = np.where(_twelve == 0, 63000, _twelve).astype(np.uint16)
DICOM: dict[str, tuple[bytes, Pixels]] = {
    "twelve_bits.dcm": (dicom_bytes(_twelve, BitsStored=12), _twelve),
    "inverted.dcm": (
        dicom_bytes(
            _signed,
            ImplicitVRLittleEndian,
            PhotometricInterpretation="MONOCHROME1",
            RescaleSlope=2,
            RescaleIntercept=-30,
        ),
        -2 * _signed.astype(np.int32),  # inverted, and shifted, which the window does away with
    ),
    "eight_bits.dcm": (dicom_bytes(_eight), _eight),
    "big_endian.dcm": (dicom_bytes(_twelve[:150], ExplicitVRBigEndian), _twelve[:150]),
    "colour.dcm": (dicom_bytes(colour(80, 90, 43)), colour(80, 90, 43)),
    "padded.dcm": (
        dicom_bytes(_padded, PixelPaddingValue=63000),
        np.where(_twelve == 0, _dark, _twelve),
    ),
}


def write_png(path: Path, pixels: Pixels, *, depth: int, interlaced: bool = False) -> None:
    """Write what Pillow does not: 16-bit colour, 4-bit grey, interlacing."""
    height, width = pixels.shape[:2]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    lines = bytearray()
    for x, y, step_x, step_y in passes if interlaced else [(0, 0, 1, 1)]:
        for line in pixels[y::step_y, x::step_x]:
            if not len(line):
                continue
            samples = line.ravel()
            if depth == 16:
                packed = samples.astype(">u2").tobytes()
            else:
                bits = "".join(f"{sample:0{depth}b}" for sample in samples.tolist())
                bits += "0" * (-len(bits) % 8)
                packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
            lines += b"\0" + packed
    kind = struct.pack(">IIBBBBB", width, height, depth, 2 if pixels.ndim == 3 else 0, 0, 0, int(interlaced))
    chunks = [(b"IHDR", kind), (b"IDAT", zlib.compress(bytes(lines))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_nifti(path: Path, voxels: Pixels, affine: NDArray[np.floating]) -> None:
    """Write a volume of 16-bit voxels as NIfTI-1, not packed."""
    path.write_bytes(nifti_bytes(voxels.astype("<i2"), 1, affine))
