"""Damage valid `.mat` and zip files, at random and where it hurts: what the fuzzing script and the tests share."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from hdf5_checksums import SealedBlock, seal, sealed_blocks

from hf_kdmri.data.phantom import mat_bytes

READABLE = 4  # of the valid files, the first ones are read, the others refused for their newer format or filter
USER_BLOCK = 512  # bytes of MATLAB's header, which HDF5 addresses do not count
# superblock, group B-tree, heaps, symbol tables, object headers and their continuations, newer B-trees, chunk indexes
HDF5_SIGNATURE = re.compile(
    rb"\x89HDF|TREE|HEAP|SNOD|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|FSHD|FSSE|BTHD|BTLF|BTIN|EAHD|EAIB|EASB|EADB|FAHD|FADB"
)
ZIP_RECORD = re.compile(rb"PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07|\x07\x08)")
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
NAMES = (b"../1.mat", b"/1.mat", b"C:\\1.mat", b"1.mat/", b"\x00.mat", b"", b"a/./1.mat", b"\xff\xfe.mat", b"2.zip")


@lru_cache(maxsize=1)
def valid_mats() -> tuple[bytes, ...]:
    """Slices in the published layout and in every other form that HDF5 has for the same numbers."""
    image = (np.arange(48 * 48).reshape(48, 48) % 97 * 7).astype(np.int16)
    border = np.array([[5.0, 20.0], [15.0, 18.0], [14.0, 33.0], [6.0, 30.0]])
    published = mat_bytes(1, "MR900001B", image, border)
    noise = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.int16)

    def other(libver: str, image_options: dict[str, Any], *, attributes: int = 1, fields: int = 0) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=libver, userblock_size=USER_BLOCK) as file:
            group = file.create_group("cjdata", track_order=bool(fields) and libver != "earliest")
            with h5py.File(io.BytesIO(published), "r") as source:
                for name, values in source["cjdata"].items():
                    options = image_options if name in ("image", "tumorMask") else {}
                    group.create_dataset(name, data=values[()], **options)
            for i in range(attributes):
                group["image"].attrs[f"MATLAB_class{i}"] = np.bytes_("int16")
            for i in range(fields):  # beside the struct's own: deep B-trees, dense groups
                group[f"other{i}"] = float(i)
        return buffer.getvalue()

    gzip = {"compression": "gzip", "chunks": (16, 16)}
    return (
        published,
        mat_bytes(0, "90001", noise, border),
        other("earliest", {**gzip, "shuffle": True}, fields=40, attributes=20),
        other("earliest", {}),  # in one piece
        other("earliest", {**gzip, "fletcher32": True}, attributes=20),
        other("latest", {}, fields=40, attributes=20),  # in one piece, beside much else
        other("v110", {"chunks": (48, 48)}),  # one chunk
        other("v110", {**gzip}),  # fixed array
        other("v110", {**gzip, "maxshape": (None, 48)}),  # extensible array
        other("v110", {**gzip, "maxshape": (None, None)}),  # version-2 B-tree
        other("latest", {**gzip, "shuffle": True}),
    )


@lru_cache(maxsize=1)
def valid_zips() -> tuple[bytes, ...]:
    """Archives in every layout that the readers take."""
    mats = {f"{number}.mat": data for number, data in enumerate(valid_mats()[:4], start=1)}
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    halves = {f"part{i}.zip": zipped(dict(list(mats.items())[i::2]), stored) for i in range(2)}
    return (
        zipped(mats, stored),
        zipped(mats, deflated),
        zipped({f"dataset/data/{name}": data for name, data in mats.items()} | {"dataset/cvind.mat": b"x"}, deflated),
        zipped(halves | {"README.txt": b"text"}, stored),
        zipped(halves, deflated),
        zipped(mats, deflated, force_zip64=True),
        zipped(mats, deflated, seekable=False),  # sizes after the data
        zipped(mats, zipfile.ZIP_LZMA),
        zipped(mats, zipfile.ZIP_BZIP2),
    )


class _Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation

    tell = seek  # type: ignore[assignment]


def zipped(members: dict[str, bytes], method: int, *, force_zip64: bool = False, seekable: bool = True) -> bytes:
    """A zip of the members."""
    buffer = io.BytesIO() if seekable else _Unseekable()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            with (
                archive.open(zipfile.ZipInfo(name), "w", force_zip64=force_zip64)
                if force_zip64
                else archive.open(name, "w") as file
            ):
                file.write(data)
    return buffer.getvalue()


def mutated_mat(rng: random.Random) -> bytes:
    """A slice's file with some damage, half of it behind checksums that fit; a few come out valid."""
    valid = rng.choice(valid_mats()[: rng.choice([READABLE, len(valid_mats())])])
    data = bytearray(valid)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        rng.choice([_flip, _flip, _overwrite, _structure, _structure, _address, _address, _splice, _cut])(
            data, rng, HDF5_SIGNATURE, valid_mats
        )
    if len(data) == len(valid) and rng.random() < 0.5:
        for block in hdf5_blocks(valid):
            extent = slice(block.start, block.start + block.length + 4)
            if data[extent] != valid[extent]:
                seal(data, block)
    return bytes(data)


@lru_cache(maxsize=16)
def hdf5_blocks(valid: bytes) -> list[SealedBlock]:
    """The blocks of a valid file that carry a checksum."""
    return sealed_blocks(valid, [match.start() for match in HDF5_SIGNATURE.finditer(valid)])


def mutated_zip(rng: random.Random) -> bytes:
    """An archive with some damage, in itself, in its slices or in an archive inside it; a few come out valid."""
    kind = rng.random()
    if kind < 0.2:  # a good archive of damaged slices
        return zipped({f"{n}.mat": mutated_mat(rng) for n in range(1, 4)}, rng.choice([0, 8]))
    if kind < 0.3:  # a good archive of a damaged one
        return zipped({"inner.zip": _damaged_zip(rng)}, rng.choice([0, 8]))
    return _damaged_zip(rng)


def _damaged_zip(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(valid_zips()))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        rng.choice([_flip, _overwrite, _structure, _structure, _structure, _splice, _cut, _rename, _repeat_record])(
            data, rng, ZIP_RECORD, valid_zips
        )
    return bytes(data)


Samples = Callable[[], tuple[bytes, ...]]


def damaged(valid: bytes, rng: random.Random, structures: re.Pattern[bytes], samples: Samples) -> bytes:
    """A file of any format with some damage.

    Args:
        valid: The file.
        rng: What decides.
        structures: Finds the beginnings of the format's own records.
        samples: Valid files, blocks of which are copied in.
    """
    data = bytearray(valid)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        rng.choice([_flip, _flip, _overwrite, _structure, _structure, _structure, _splice, _cut])(
            data, rng, structures, samples
        )
    return bytes(data)


def _flip(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """One bit, anywhere or in the metadata at the start."""
    if data:
        data[rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 4096))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """Some bytes with a telling number, as wide as a field."""
    if data:
        width = rng.choice([1, 2, 4, 8])
        position = rng.randrange(max(1, len(data) - width))
        data[position : position + width] = _number(len(data), rng, width)


def _structure(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """A field of one of the format's own records: a count, a length, a version, an offset."""
    found = [match.start() for match in structures.finditer(data)]
    if found:
        width = rng.choice([1, 2, 4, 8])
        field = rng.randrange(rng.choice([64, 320]))  # the messages of an object's header lie further behind
        position = min(rng.choice(found) + field, max(0, len(data) - width))
        data[position : position + width] = _number(len(data), rng, width)


def _address(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """Make one record point to another, or to itself: loops, and fields read as another field."""
    places = [match.start() - USER_BLOCK for match in structures.finditer(data)]
    addresses = {place.to_bytes(8, "little") for place in places if place > 0}
    pointers = [at for address in sorted(addresses) for at in _all_of(address, data)]
    if pointers:
        position = rng.choice(pointers)
        data[position : position + 8] = max(0, rng.choice(places)).to_bytes(8, "little")


def _splice(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], samples: Samples) -> None:
    """A block of this or another file, in place of, or before, some bytes."""
    source = data if rng.random() < 0.5 else rng.choice(samples())
    if data and source:
        length = rng.choice([1, 8, 30, 46, 64, 512, 2048])
        start, position = rng.randrange(len(source)), rng.randrange(len(data))
        data[position : position + rng.choice([0, length])] = source[start : start + length]


def _cut(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """Some bytes fewer, in the middle or at the end."""
    if data:
        position = rng.randrange(len(data))
        del data[position : position + rng.choice([1, 8, 64, 512, len(data)])]


def _rename(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """Another name for a member; the lengths around it stay."""
    found = [match.start() + 46 for match in re.finditer(rb"PK\x01\x02", data)]
    if found:
        position, name = rng.choice(found), rng.choice(NAMES)
        data[position : position + len(name)] = name


def _repeat_record(data: bytearray, rng: random.Random, structures: re.Pattern[bytes], _: Samples) -> None:
    """A member listed many times under new names, its bytes there once; counts and sizes made to fit."""
    ends = [match.start() for match in re.finditer(rb"PK\x05\x06", data)]
    first = data.find(b"PK\x01\x02")
    if not ends or first < 0 or len(data) < ends[-1] + 22:
        return
    length = 46 + sum(int.from_bytes(data[first + at : first + at + 2], "little") for at in (28, 30, 32))
    record, copies = bytes(data[first : first + length]), bytearray()
    count = rng.choice([2, 10, 100])
    for number in range(count):
        copies += record[:46] + record[46:].replace(b"1.mat", b"%d.mat" % (number % 9 + 1), 1)
    end = ends[-1]
    total = int.from_bytes(data[end + 10 : end + 12], "little") + count
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(copies)
    data[end + 8 : end + 16] = (total % 2**16).to_bytes(2, "little") * 2 + (size % 2**32).to_bytes(4, "little")
    data[end:end] = copies


def _number(size: int, rng: random.Random, width: int) -> bytes:
    value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(2 * size + 2)
    return (value % 256**width).to_bytes(width, "little")


def _all_of(needle: bytes, data: bytearray) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(needle), data)]
