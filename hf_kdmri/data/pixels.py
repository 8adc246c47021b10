"""What a column makes of a slice's pixels: an 8-bit window, unsigned 16-bit intensities, the box around a mask."""

from __future__ import annotations

import numpy as np

from hf_kdmri.data.mat_file import SliceFileError


def window_to_uint8(
    image: np.ndarray, percentiles: tuple[float, float] = (0.1, 99.9)
) -> tuple[np.ndarray, float, float]:
    """Map raw intensities to 8 bits, linearly between two percentiles of the slice, clipped outside them.

    Args:
        image: (H, W) finite numbers.
        percentiles: Lower and upper percentile (0-100) that become 0 and 255. Default (0.1, 99.9).

    Returns:
        The (H, W) uint8 image and the raw intensities that became 0 and 255. Where the two percentiles are
        equal (a constant image) all pixels are 0.

    Example:
        >>> image, low, high = window_to_uint8(np.array([[0, 50], [150, 200]]), (0, 100))
        >>> image.tolist(), low, high
        ([[0, 64], [191, 255]], 0.0, 200.0)
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"window percentiles are {percentiles}; expected 0 <= lower < upper <= 100")
    positions = [percentile / 100 * (image.size - 1) for percentile in percentiles]
    ranks = sorted({rank for p in positions for rank in (int(p), min(int(p) + 1, image.size - 1))})
    smallest, largest = image.min(), image.max()
    steps = int(largest) - int(smallest) + 1 if image.dtype.kind in "iu" and largest < 2**62 else 0
    if 0 < steps <= 2**16:  # each intensity is mapped once, not each pixel: 8 times as fast
        levels = np.subtract(image, smallest, dtype=np.uint16, casting="unsafe").ravel()  # exact: modulo 2^16
        ordered = np.searchsorted(np.bincount(levels).cumsum(), ranks, side="right") + int(smallest)
        low, high = _interpolated(positions, dict(zip(ranks, ordered.tolist(), strict=True)))
        table = _stretch(np.arange(int(smallest), int(smallest) + steps), low, high)
        return table.take(levels, mode="clip").reshape(image.shape), low, high  # clip: unchecked, and none is outside
    partitioned = np.partition(image.ravel(), ranks)
    low, high = _interpolated(positions, {rank: float(partitioned[rank]) for rank in ranks})
    return _stretch(image, low, high), low, high


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


def _interpolated(positions: list[float], values: dict[int, float]) -> list[float]:
    """`np.percentile` in float64: numpy's own subtracts int16 neighbours, which can overflow."""
    last = max(values)
    return [float(values[int(p)] + (values[min(int(p) + 1, last)] - values[int(p)]) * (p - int(p))) for p in positions]


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((np.clip(values, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)
