"""Where the files of a data set may lie: in its own folder, or where `datasets` keeps what it downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.file_utils import xopen
from huggingface_hub import constants

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.picture_limits import PictureError

_SHOWN = 3


def check_data_files(builder: datasets.DatasetBuilder, folder: Path | None) -> None:
    """Refuse a set whose own README names data files elsewhere on this machine or on the net.

    Args:
        builder: Of `datasets.load_dataset_builder`; nothing has been read yet.
        folder: The set's folder, or None for one from the Hub, whose files are on the Hub.

    Raises:
        OwnDataError: A file lies elsewhere.
    """
    # A set prepared earlier and opened offline has no list of files.
    named = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    strange = [
        file for file in named if not (_last(file).startswith("hf://") if folder is None else is_below(file, [folder]))
    ]
    if strange:
        told = ", ".join(strange[:_SHOWN]) + (", …" if len(strange) > _SHOWN else "")
        raise OwnDataError(
            f"the set's README names data files outside {'its repository' if folder is None else folder}: {told}; "
            "copy them into the folder and correct data_files, or delete that part of the README"
        )


def places_of(builder: datasets.DatasetBuilder, folder: Path | None, cache_dir: str | Path | None) -> tuple[str, ...]:
    """Return the folders and addresses below which a picture of a set may lie, symbolic links not followed.

    These are the set's own folder or address on the Hub, and the caches into which archives are unpacked.
    """
    caches = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    own = [folder] if folder is not None else [builder.base_path] if str(builder.base_path).startswith("hf://") else []
    return tuple(str(place) for place in (*own, *caches, *([] if cache_dir is None else [cache_dir])))


def is_below(path: str, places: tuple[str, ...] | list[Path]) -> bool:
    """Whether a path or address leads into one of the places, or into an archive that lies in one.

    Example:
        >>> [is_below(path, ("/data/set",)) for path in ("/data/set/1.png", "/data/set/../1.png", "/data/set2/1.png")]
        [True, False, False]
        >>> is_below("zip://1.png::hf://datasets/a/b@main/c.zip", ("hf://datasets/a/b@main",))
        True
    """
    outermost = _last(path)
    if "://" in outermost:
        return ".." not in outermost.split("/") and any(
            outermost.startswith(str(place).rstrip("/") + "/") for place in places if "://" in str(place)
        )
    absolute = Path(os.path.abspath(outermost))
    return any(absolute.is_relative_to(os.path.abspath(place)) for place in places if "://" not in str(place))


def check_place(cell: dict[str, Any] | None, places: tuple[str, ...]) -> None:
    """Refuse a cell of `datasets.Image(decode=False)` that names a file elsewhere instead of holding the picture.

    Raises:
        PictureError: Its path leads out of the places.
    """
    if cell and cell.get("bytes") is None and cell.get("path") and not is_below(cell["path"], places):
        raise PictureError(
            "lies outside the data set's folder, and a set must not name other files of this machine; copy the "
            "picture into the folder, or put a link to it there"
        )


def read_cell(cell: dict[str, Any] | None, places: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the cell of a stream with its picture's bytes in it, wherever the stream names a file.

    Raises:
        PictureError: The file lies elsewhere, or cannot be opened.
    """
    if not cell or cell.get("bytes") is not None or not cell.get("path"):
        return cell
    try:
        check_place(cell, places)
        with xopen(cell["path"], "rb") as file:
            return {**cell, "bytes": file.read()}
    except OSError as error:
        raise PictureError(f"({cell['path']}) cannot be opened ({error})") from error
    except PictureError as error:
        raise PictureError(f"({cell['path']}) {error}") from error


def _last(path: str) -> str:
    """The outermost file of a chain like `zip://1.png::/data/set/a.zip`."""
    return path.split("::")[-1]
