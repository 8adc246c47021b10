"""Read an HDF5 data set from a file that may be damaged or hostile, within known memory."""

from __future__ import annotations

import zlib

import h5py
import numpy as np


def read_bounded(dataset: h5py.Dataset) -> np.ndarray:
    """`dataset[()]` that allocates no more than the declared shape and chunk size need.

    HDF5 itself believes a damaged chunk's size (20 GB were seen for a file of 10 KB) and lets a chunk inflate without
    limit. So chunks are fetched compressed and inflated here. MATLAB compresses with gzip only; shuffle is h5py's.

    Args:
        dataset: Numbers of a size that the caller has checked, chunks included.

    Raises:
        ValueError: another filter, or a chunk that is larger or smaller than declared.
        Exception: whatever h5py and zlib make of a damaged file.
    """
    if dataset.chunks is None:
        return dataset[()]
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise ValueError(f"HDF5 filters {filters}, expected gzip (1) and shuffle (2) only")
    stored: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(stored.append)
    values = np.zeros(dataset.shape, dataset.dtype)
    chunk_bytes = int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize
    for chunk in stored:
        if chunk.size > chunk_bytes + chunk_bytes // 8 + 1024:  # incompressible data grow a little
            raise ValueError(f"a chunk of {chunk_bytes} bytes is stored in {chunk.size}")
        skipped, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
        for i in reversed(range(len(filters))):
            if skipped >> i & 1:
                continue
            if filters[i] == h5py.h5z.FILTER_DEFLATE:
                data = zlib.decompressobj().decompress(data, chunk_bytes + 1)
            else:
                data = np.frombuffer(data, np.uint8).reshape(dataset.dtype.itemsize, -1).T.tobytes()
        block = np.frombuffer(data, dataset.dtype).reshape(dataset.chunks)  # refuses any other length
        window = tuple(
            slice(first, first + side) for first, side in zip(chunk.chunk_offset, dataset.chunks, strict=True)
        )
        values[window] = block[tuple(slice(0, side) for side in values[window].shape)]
    return values
