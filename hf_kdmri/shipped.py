"""The student that comes with this package, in the checkout and in the wheel."""

from __future__ import annotations

from pathlib import Path

NAME = "kdmri-student"
_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "student", _PACKAGE.parent / "models" / NAME)  # of a wheel, of a checkout


def shipped_student() -> Path:
    """Folder of the student that comes with this package.

    Raises:
        FileNotFoundError: This installation was made without it.
    """
    for place in _PLACES:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError("this installation came without a student; name a model with --model")
