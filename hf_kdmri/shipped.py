"""What comes with this package beside its code: at the top of a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

NAME = "kdmri-student"


def shipped_folder(in_wheel: str, in_checkout: str, file: str) -> Path | None:
    """Find a folder that setup.py puts inside the package.

    Args:
        in_wheel: Its name in the package.
        in_checkout: Its path in the repository.
        file: Which it must hold.

    Returns:
        The folder, or None if this installation was made without it.
    """
    package = Path(__file__).resolve().parent
    places = (package / in_wheel, package.parent / in_checkout)
    return next((place for place in places if (place / file).is_file()), None)


def shipped_student() -> Path:
    """Folder of the student that comes with this package.

    Raises:
        FileNotFoundError: This installation was made without it.
    """
    folder = shipped_folder("student", f"models/{NAME}", "config.json")
    if folder is None:
        raise FileNotFoundError("this installation came without a student; name a model with --model")
    return folder
