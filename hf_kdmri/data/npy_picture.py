"""A slice saved with `numpy.save`: a grey picture without a format of its own."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from hf_kdmri.data.picture_limits import PictureError, check_size

MAGIC = b"\x93NUMPY"


def read_npy(encoded: bytes) -> NDArray[np.number]:
    """Read a 2-D array of numbers; nothing is unpickled.

    Accepted because research code keeps slices so, and because arrays of 16 bits or floats reach the model without a
    detour over a picture format that would clip them.

    Args:
        encoded: The bytes of a `.npy` file.

    Returns:
        (H, W) of int, uint or float, at most 8 bytes per pixel.

    Raises:
        PictureError: another number of axes, another type (bool and complex too), too large, or cut off.
    """
    stream = io.BytesIO(encoded)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = reader(stream)
    except Exception as error:  # the header is a Python literal, whose parser raises what it likes on damaged bytes
        raise PictureError("has a damaged .npy header; save it again with numpy.save") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise PictureError(f"holds numbers of type {dtype}, expected integers or floats of at most 64 bits")
    if len(shape) != 2:
        raise PictureError(f"holds an array of shape {shape}, expected (height, width); save one grey slice per file")
    height, width = shape
    check_size(width, height)
    if len(encoded) - stream.tell() != width * height * dtype.itemsize:
        raise PictureError(f"does not hold the {height} x {width} numbers that its header tells; save it again")
    array = np.frombuffer(encoded, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
    native = np.float32 if dtype == np.float16 else dtype.newbyteorder("=")  # float16 is too coarse to be windowed
    return np.ascontiguousarray(array, native)
