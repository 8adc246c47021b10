"""Read an HDF5 data set from a file that may be damaged or hostile, within known memory."""

from __future__ import annotations

import h5py
import numpy as np
from isal import isal_zlib


def chunk_shape(dataset: h5py.h5d.DatasetID) -> tuple[int, ...] | None:
    """Return the shape of the data set's chunks, or None if it lies in one piece."""
    properties = dataset.get_create_plist()
    return properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else None


def read_bounded(dataset: h5py.h5d.DatasetID, file_bytes: bytes) -> np.ndarray:
    """Read all values, and allocate no more than the declared shape and chunk size need.

    HDF5 itself believes a damaged chunk's size (20 GB were seen for a file of 10 KB) and lets a chunk inflate without
    limit. So chunks are found by HDF5 and inflated here. MATLAB compresses with gzip only; shuffle is h5py's.

    Args:
        dataset: Numbers of a size that the caller has checked, chunks included.
        file_bytes: The whole file that holds it.

    Returns:
        The values. Chunked ones lie in MATLAB's order, so that the transpose, which is the picture, is contiguous.

    Raises:
        ValueError: another filter, or a chunk that is larger or smaller than declared.
        Exception: whatever h5py and zlib make of a damaged file.
    """
    shape, dtype, chunks = dataset.shape, dataset.dtype, chunk_shape(dataset)  # each look-up is a call into HDF5
    if chunks is None:
        values = np.zeros(shape, dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values
    properties = dataset.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise ValueError(f"HDF5 filters {filters}, expected gzip (1) and shuffle (2) only")
    undone = list(enumerate(filters))[::-1]
    stored: list[h5py.h5d.StoreInfo] = []
    dataset.chunk_iter(stored.append)
    values = np.zeros(shape, dtype, order="F")
    chunk_bytes = int(np.prod(chunks, dtype=object)) * dtype.itemsize
    for offset, filter_mask, start, size in stored:
        if size > chunk_bytes + chunk_bytes // 8 + 1024:  # incompressible data grow a little
            raise ValueError(f"a chunk of {chunk_bytes} bytes is stored in {size}")
        data = file_bytes[start : start + size]
        for i, filter_id in undone:
            if filter_mask >> i & 1:  # this chunk skipped the filter
                continue
            if filter_id == h5py.h5z.FILTER_DEFLATE:
                data = isal_zlib.decompressobj().decompress(data, chunk_bytes + 1)
            else:
                data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        block = np.frombuffer(data, dtype).reshape(chunks)  # refuses any other length
        inside = values[tuple(slice(first, first + side) for first, side in zip(offset, chunks, strict=True))]
        inside[...] = block if inside.shape == chunks else block[tuple(slice(0, side) for side in inside.shape)]
    return values
