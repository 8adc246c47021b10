"""The images that a command is given: files, folders, patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sources:
    """What paths and patterns name.

    Args:
        found: Image files, and folders that hold some.
        total: Number of images in them.
        absent: What was named and holds no image, with the reason.
    """

    found: list[Path]
    total: int
    absent: dict[Path, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Path]:
        """Walk through all images, in the order in which they were named; none is kept."""
        from hf_kdmri.data.pictures import find_images

        for source in self.found:
            yield from find_images(source)


def find_sources(named: Sequence[str]) -> Sources:
    """Look for files, folders and patterns.

    Args:
        named: Paths. What does not exist is taken for a pattern (`*`, `?`, `[…]`, `**` for any depth), for shells that
            pass patterns on.
    """
    from hf_kdmri.data.pictures import SUFFIXES, find_images

    found: list[Path] = []
    absent: dict[Path, str] = {}
    total = 0
    for name in named:
        for source in [Path(name)] if Path(name).exists() else _matches(name):
            try:
                images = sum(1 for _ in find_images(source))
            except FileNotFoundError:
                absent[source] = (
                    "does not exist; expected an image, a folder of images, or a pattern such as 'scans/*.png'"
                )
                continue
            if images:
                found.append(source)
                total += images
            else:
                absent[source] = f"holds no images; expected files that end in {', '.join(sorted(SUFFIXES))}"
    return Sources(found, total, absent)


def _matches(pattern: str) -> list[Path]:
    """Files that match; folders only where no file does, since `**` would name a file and its folders too."""
    matched = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in matched if path.is_file()] or matched or [Path(pattern)]
