"""HDF5's newer metadata carry checksums; damage in them reaches the code behind only if the checksum is made to fit.

The checksum is Bob Jenkins' lookup3, "hashlittle" of http://burtleburtle.net/bob/c/lookup3.c, from 0. How far a block
reaches depends on its kind and its content, so the blocks of a valid file are found by trying lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LONGEST_BLOCK = 1024  # bytes; those of small files are not longer
_MIX = (4, 6, 8, 16, 19, 4)
_FINAL = (14, 11, 25, 16, 4, 14, 24)
# A direct block of a fractal heap holds its checksum behind version, heap address and a block offset of 4 or 5 bytes
_HEAP_BLOCK, _HEAP_CHECKSUMS = b"FHDB", (17, 18)


@dataclass(frozen=True)
class SealedBlock:
    """A block of metadata with its checksum.

    Attributes:
        start: First byte in the file.
        length: Bytes that the checksum covers; its own four count as zeros.
        checksum: Where the checksum lies, counted from `start`: at `length` or, in a heap's block, inside.
    """

    start: int
    length: int
    checksum: int


def sealed_blocks(data: bytes, starts: list[int]) -> list[SealedBlock]:
    """Find the blocks that carry their checksum; others, of the older formats, are left out.

    Args:
        data: A valid file.
        starts: Where blocks begin.
    """
    found = []
    for start in starts:
        block = data[start : start + LONGEST_BLOCK + 4] + bytes(4)  # a heap's block may end with the file
        lengths = np.arange(8, len(block) - 3)
        stored = {n: int.from_bytes(block[n : n + 4], "little") for n in lengths.tolist()}
        if block[:4] == _HEAP_BLOCK:
            for place in _HEAP_CHECKSUMS:
                hits = lengths[lookup3(_blanked(block, place), lengths) == stored[place]]
                found += [SealedBlock(start, n, place) for n in hits.tolist() if n > place]
        else:
            hits = lengths[lookup3(block, lengths) == np.array(list(stored.values()), np.uint32)]
            found += [SealedBlock(start, n, n) for n in hits.tolist()[:1]]
    return found


def seal(data: bytearray, block: SealedBlock) -> None:
    """Make the checksum of a block fit what the block holds now; a block that is cut short stays as it is."""
    place = block.start + block.checksum
    if len(data) >= max(block.start + block.length, place + 4):
        content = _blanked(bytes(data[block.start : block.start + block.length]), block.checksum)
        checksum = lookup3(content, np.array([block.length]))[0]
        data[place : place + 4] = int(checksum).to_bytes(4, "little")


def lookup3(data: bytes, lengths: np.ndarray) -> np.ndarray:
    """The checksums (N,) uint32 of the first `lengths` (N,) bytes of the data, each at least 1.

    Example:
        >>> lookup3(b"Four score and seven years ago", np.array([30])).tolist() == [0x17770551]  # Jenkins' own
        True
    """
    padded = np.frombuffer(data + bytes(12), np.uint8)
    a = b = c = np.uint32(0xDEADBEEF) + lengths.astype(np.uint32)
    result = np.zeros(len(lengths), np.uint32)
    for first in range(0, int(lengths.max(initial=0)), 12):
        left = lengths - first
        within = np.arange(12) < left[:, None]
        words = (padded[first : first + 12] * within).astype(np.uint8).view("<u4").astype(np.uint32)
        a, b, c = a + words[:, 0], b + words[:, 1], c + words[:, 2]
        result = np.where((left > 0) & (left <= 12), _final(a, b, c), result)
        a, b, c = _mix(a, b, c)
    return result


def _mix(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for bits in _MIX:  # the three change roles each round, so that after six they are home again
        a, b, c = b, c + b, (a - c) ^ _rotated(c, bits)
    return a, b, c


def _final(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    for bits in _FINAL:
        a, b, c = b, (c ^ b) - _rotated(b, bits), a
    return b  # c, after seven changes of roles


def _rotated(x: np.ndarray, bits: int) -> np.ndarray:
    return (x << np.uint32(bits)) | (x >> np.uint32(32 - bits))


def _blanked(block: bytes, place: int) -> bytes:
    return block[:place] + bytes(4) + block[place + 4 :] if place < len(block) else block
