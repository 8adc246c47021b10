"""Files that the page must refuse."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from picture_mutations import dicom_bytes
from PIL import Image

from tests.space_pictures import colour, grey, head


def write_refused(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that the page must refuse, each with words of the reason."""

    def file(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def saved(name: str, picture: Image.Image, **options) -> Path:
        picture.save(folder / name, **options)
        return folder / name

    def dicom(name: str, stored=None, **tags) -> Path:
        return file(name, dicom_bytes(head(20, 20, 1) if stored is None else stored, **tags))

    first, second = Image.fromarray(grey(64, 64, 1)), Image.fromarray(grey(64, 64, 2))
    whole = saved("whole.png", first).read_bytes()
    header = whole[12:16] + b"\0\0\xff\xff" * 2 + whole[24:29]
    one_bit_off = whole[:28] + bytes([whole[28] ^ 1]) + whole[29:]
    huge = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]
    return {
        "empty": (file("empty.png", b""), "empty"),
        "text": (file("text.png", b"no picture at all"), "no picture that the page knows"),
        "tiff": (saved("a.tiff", first), "TIFF"),
        "cut off": (file("cut.png", whole[: len(whole) // 2]), "damaged or cut off"),
        "cut jpeg": (file("cut.jpg", b"\xff\xd8\xff\xe0\x00\x10"), "cut off"),
        "huge": (file("huge.png", huge), "at most 40 million"),
        "wrong checksum": (file("bit.png", one_bit_off), "checksum of its part IHDR"),
        "animated": (saved("two.gif", first, save_all=True, append_images=[second]), "animated"),
        "animated webp": (saved("two.webp", first.convert("RGB"), save_all=True, append_images=[second]), "animated"),
        "animated png": (saved("two.png", first, save_all=True, append_images=[second]), "animated"),
        "constant": (saved("flat.png", Image.fromarray(np.full((32, 32), 900, np.uint16))), "constant"),
        "frames": (dicom("frames.dcm", head(40, 20, 1), Rows=20, NumberOfFrames=2), "2 frames"),
        "other colours": (dicom("ybr.dcm", colour(20, 20, 1), PhotometricInterpretation="YBR_FULL"), "YBR_FULL"),
        "too short": (dicom("short.dcm", Rows=999), "before its last pixel"),
        "compressed": (file("jpeg.dcm", _renamed_syntax(dicom("plain.dcm"))), "compressed"),
        "gzip": (file("a.gz", b"\x1f\x8b\x08" + bytes(30)), "damaged or cut off"),
    }


def _renamed_syntax(path: Path) -> bytes:
    """The same file, said to be JPEG 2000."""
    plain, jpeg = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90"
    content = path.read_bytes()
    at = content.index(plain)
    content = content[: at - 2] + len(jpeg).to_bytes(2, "little") + jpeg + content[at + len(plain) :]
    length_at = content.index(b"\x02\0\0\0UL\x04\0") + 8
    length = int.from_bytes(content[length_at : length_at + 4], "little") + len(jpeg) - len(plain)
    return content[:length_at] + length.to_bytes(4, "little") + content[length_at + 4 :]
