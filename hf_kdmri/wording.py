"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Put a number before a noun, singular where it is 1.

    Args:
        number: How many; thousands are separated by commas.
        noun: Singular.
        plural: Where it is not the singular with an s.

    Example:
        >>> counted(1, "image"), counted(3064, "slice"), counted(0, "copy", "copies")
        ('1 image', '3,064 slices', '0 copies')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
