"""What a picture must not be, whatever its format: unreadable, or so large that decoding it would fill the memory."""

from __future__ import annotations

MAX_PIXELS = 64_000_000  # 8000 x 8000: no slice is as large, and a file of 100 kB can claim a hundred times as much


class PictureError(ValueError):
    """A picture that cannot be read; the message says why and what to do."""


def check_size(width: int, height: int) -> None:
    """Refuse a picture by the size that its header claims, before a byte of it is decoded.

    Args:
        width: Pixels in a row.
        height: Rows.

    Raises:
        PictureError: No pixels, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise PictureError(f"is {width} x {height} pixels, so there is nothing in it")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"is {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; save the slice at its own size"
        )
