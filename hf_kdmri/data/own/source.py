"""Find a user's data set, a folder or on the Hub, and open it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetBuildError

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.own.places import check_data_files, places_of

_READERS = ("imagefolder", "parquet", "arrow", "webdataset", "csv", "json")


@dataclass(frozen=True)
class OwnSource:
    """A data set that was found, and of which nothing has been read.

    Args:
        name: as given.
        folder: its whole path, or None for a set on the Hub.
        builder: of `datasets`, which reads it.
        places: below which its pictures may lie, see `hf_kdmri.data.own.places`.
    """

    name: str
    folder: Path | None
    builder: datasets.DatasetBuilder
    places: tuple[str, ...]

    @property
    def short_name(self) -> str:
        """The name as given; of a folder the last part."""
        return self.name if self.folder is None else self.folder.name

    @property
    def hub_id(self) -> str | None:
        """`user/name` where it is on the Hub."""
        return self.name if self.folder is None else None

    def load(self) -> datasets.DatasetDict:
        """Read it, or what was read before.

        Raises:
            OwnDataError: it cannot be read, or is empty.
        """
        with _in_our_words(self.name):
            self.builder.download_and_prepare()
            splits = self.builder.as_dataset()
        if not splits or not any(len(split) for split in splits.values()):
            raise OwnDataError(f"the data set {self.name!r} holds no images")
        return splits

    def stream(self) -> datasets.IterableDatasetDict:
        """Open its splits without reading them.

        Raises:
            OwnDataError: it cannot be streamed.
        """
        with _in_our_words(self.name):
            return self.builder.as_streaming_dataset()


def find_set(name: str, config_name: str | None, cache_dir: str | Path | None) -> OwnSource:
    """Find a set's reader and its files.

    Args:
        name: Hub name or folder.
        config_name: of the set, where it has several.
        cache_dir: default is that of `datasets`.

    Raises:
        OwnDataError: there is no such set, or it names files that are not its own.
    """
    path = Path(name).expanduser().resolve()
    folder = path if path.exists() else None
    if folder is None and name in _READERS:
        raise OwnDataError(
            f"{name!r} is a reader of the datasets library, not a set; give the folder, it is recognised"
        )
    if folder is not None and (folder / datasets.config.DATASET_STATE_JSON_FILENAME).exists():
        raise OwnDataError(
            f"{name!r} was written by save_to_disk, which load_dataset does not read; write it anew: "
            "datasets.load_from_disk(FOLDER).to_parquet('NEW_FOLDER/train.parquet')"
        )
    with _in_our_words(name):
        # A folder by its whole path: `datasets` takes a bare "parquet" for its own reader, this for the data.
        where = name if folder is None else str(folder)
        cache = None if cache_dir is None else str(cache_dir)
        builder = datasets.load_dataset_builder(where, config_name, cache_dir=cache)
    check_data_files(builder, folder)
    return OwnSource(name, folder, builder, places_of(builder, folder, cache_dir))


@contextmanager
def _in_our_words(name: str) -> Iterator[None]:
    """Errors of `datasets` about a set in this project's words."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetBuildError) as error:
        hint = "" if Path(name).exists() else " (there is no folder of that name, so it was taken for a Hub name)"
        if "Config name is missing" in str(error):
            hint = "; choose with --dataset_config_name"
        reason = error.__cause__ if isinstance(error, DatasetBuildError) and error.__cause__ else error
        raise OwnDataError(f"cannot load the data set {name!r}{hint}: {reason}") from error
