"""From the pixels of a slice to what a column holds: unsigned 16-bit intensities, and the box around a mask."""

from __future__ import annotations

import numpy as np

from hf_kdmri.data.mat_file import SliceFileError


def raw_to_uint16(image: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """Raw intensities as PNG can hold them, without loss.

    Args:
        image: (H, W) whole numbers that span less than 65,536.
        name: What to call the file in errors.

    Returns:
        The (H, W) uint16 pixels and the offset, 0 unless there are negative intensities or some above 65,535:
        intensity = pixel + offset.

    Raises:
        SliceFileError: fractions, or a span that 16 bits cannot hold.

    Example:
        >>> pixels, offset = raw_to_uint16(np.array([[-3, 0], [7, 9]], np.int16), "1.mat")
        >>> pixels.tolist(), offset
        ([[0, 3], [10, 12]], -3)
    """
    smallest, largest = image.min(), image.max()
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        raise SliceFileError(f"{name}: intensities with fractions, which 16-bit pixels would lose; use image_bits=8")
    offset = int(smallest) if smallest < 0 or largest > 65_535 else 0
    if int(largest) - offset > 65_535:
        raise SliceFileError(
            f"{name}: intensities from {smallest} to {largest} do not fit 16 bits; use image_bits=8, which windows them"
        )
    return (image.astype(np.int64) - offset).astype(np.uint16), offset


def mask_bounding_box(mask: np.ndarray) -> list[int]:
    """The smallest box that holds a mask, in COCO's form.

    Args:
        mask: (H, W) bool.

    Returns:
        x and y of the first column and row inside, width and height, all in pixels; four zeros for an empty mask.

    Example:
        >>> mask_bounding_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
        [1, 1, 2, 1]
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return [0, 0, 0, 0]
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
