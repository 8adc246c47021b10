"""Read an HDF5 data set from a file that may be damaged or hostile, within known memory and time."""

from __future__ import annotations

import itertools
import math
import struct

import h5py
import numpy as np
from isal import isal_zlib

MAX_CHUNKS = 2**14  # published: 8 to 32; 4096 x 4096 pixels in chunks of 32 x 32
_MAX_HEADER_PIECES, _MAX_PIECE_BYTES = 16, 2**17  # published: 1 or 2 of less than 1 kB
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = struct.Struct("<8sB4xBB9xQ32xQ")  # version 0: signature, version, sizes, base address, root's header
_PREFIX = struct.Struct("<BxHII4x")  # object header, version 1: version, messages, references, bytes
_MESSAGE = struct.Struct("<HHB3x")  # kind, bytes, flags
_LAYOUT, _CONTINUATION, _SHARED = 0x08, 0x10, 0x02
_NEWER_MESSAGES = frozenset([0x02, 0x06, 0x0F, 0x15])  # links and attributes in fractal heaps, links, shared messages
_NEWER = (
    "a newer HDF5 format than MATLAB's, or data outside this file by external link or virtual data set; write it with "
    "h5py.File(..., libver='earliest')"
)


def chunk_shape(properties: h5py.h5p.PropDCID) -> tuple[int, ...] | None:
    """Return the shape of a data set's chunks from its creation properties, or None if it lies in one piece."""
    return properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else None


def root_address(file_bytes: bytes) -> tuple[int, int]:
    """Return where the HDF5 part of a file begins (behind MATLAB's header) and the address of its root group there.

    Raises:
        ValueError: no HDF5 file, or a newer format.
        struct.error: the file is cut short.
    """
    base = 0
    while file_bytes[base : base + 8] != _SIGNATURE:
        base = 2 * base or 512
        if base >= len(file_bytes):
            raise ValueError("no HDF5 signature")
    _, version, *sizes, stated_base, root = _SUPERBLOCK.unpack_from(file_bytes, base)
    if version != 0 or sizes != [8, 8] or stated_base != base:
        raise ValueError(_NEWER)
    return base, root


def refuse_newer_object(file_bytes: bytes, base: int, address: int) -> None:
    """Refuse a group or data set in anything but HDF5's first format, which MATLAB writes, before HDF5 opens it.

    HDF5 2.0 trusts the structures of its later formats (fractal heaps, B-trees of version 2, fixed and extensible
    arrays): damaged ones made it divide by zero, write outside its memory, ask for 1.6 GB or walk without end, and took
    the process with them. The first format's B-trees and heaps it checks.

    Args:
        file_bytes: The whole file.
        base: Where its HDF5 part begins.
        address: The object's, counted from there.

    Raises:
        ValueError: a newer format, or a header far larger than a slice needs.
        struct.error: a header that reaches beyond the file.
    """
    start = base + address
    version, _, _, length = _PREFIX.unpack_from(file_bytes, start)
    if version != 1:
        raise ValueError(_NEWER)
    pieces = [(start + _PREFIX.size, length)]
    for at, length in pieces:  # grows while it is walked
        if len(pieces) > _MAX_HEADER_PIECES or length > _MAX_PIECE_BYTES:
            raise ValueError(f"an object header in {len(pieces)} pieces, one of {length} bytes: too large for a slice")
        end = at + length
        while at + 8 <= end:
            kind, size, flags = _MESSAGE.unpack_from(file_bytes, at)
            at += 8
            if flags & _SHARED or kind in _NEWER_MESSAGES or (kind == _LAYOUT and file_bytes[at] > 3):
                raise ValueError(_NEWER)
            if kind == _CONTINUATION:
                place, length = struct.unpack_from("<QQ", file_bytes, at)
                pieces.append((base + place, length))
            at += size


def read_bounded(
    dataset: h5py.h5d.DatasetID, properties: h5py.h5p.PropDCID, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Read all values, in bounded time, and allocate no more than the declared shape and chunk size need.

    HDF5 itself believes a damaged chunk's size (20 GB were seen for a file of 10 KB) and lets a chunk inflate without
    limit. So chunks are read as they are stored and inflated here. MATLAB compresses with gzip only; shuffle is h5py's.
    Each chunk is looked up by its place: HDF5's walk over all chunks visits as many as the index claims, and a damaged
    index can claim 10^18 or share its branches.

    Args:
        dataset: Numbers of a size that the caller has checked, chunks included, and `refuse_newer_object` let pass.
        properties: Its creation properties. To look these, shape and type up again would cost as much as a chunk.
        shape: Its shape.
        dtype: Its type.

    Returns:
        The values. Chunked ones lie in MATLAB's order, so that the transpose, which is the picture, is contiguous.

    Raises:
        ValueError: another filter, too many chunks, or one that is larger or smaller than declared.
        Exception: whatever h5py and zlib make of a damaged file, a lacking chunk included.
    """
    chunks = chunk_shape(properties)
    if chunks is None:
        values = np.zeros(shape, dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise ValueError(f"HDF5 filters {filters}, expected gzip (1) and shuffle (2) only")
    undone = list(enumerate(filters))[::-1]
    starts = [range(0, side, step) for side, step in zip(shape, chunks, strict=True)]
    count = math.prod(max(1, len(axis)) for axis in starts)  # (0, 2**60) values are none, but no picture
    if count > MAX_CHUNKS:
        raise ValueError(f"{count} chunks of shape {chunks}, expected at most {MAX_CHUNKS}")
    places = [[slice(at, at + step) for at in axis] for axis, step in zip(starts, chunks, strict=True)]
    values = np.empty(shape, dtype, order="F")
    chunk_bytes = math.prod(chunks) * dtype.itemsize
    room = np.empty(chunk_bytes + chunk_bytes // 8 + 1024, np.uint8)  # incompressible data grow a little
    for offset, place in zip(itertools.product(*starts), itertools.product(*places), strict=True):
        filter_mask, data = dataset.read_direct_chunk(offset, out=room)  # refuses what has no room
        for i, filter_id in undone:
            if filter_mask >> i & 1:  # this chunk skipped the filter
                continue
            if filter_id == h5py.h5z.FILTER_DEFLATE:
                data = isal_zlib.decompressobj().decompress(data, chunk_bytes + 1)
            else:
                data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        block = np.frombuffer(data, dtype).reshape(chunks)  # refuses any other length
        inside = values[place]
        inside[...] = block if inside.shape == chunks else block[tuple(slice(0, side) for side in inside.shape)]
    return values
