"""Write Parquet shards so that an interrupted conversion can go on, and nothing unfinished can be loaded.

While shards are missing they lie in a hidden folder, which `load_dataset` does not see. When all are there, checksums
and card are written, and as the last step the hidden folder becomes `data/` in one rename: before it, nothing loads.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ParquetWriter
from huggingface_hub.utils import WeakFileLock

from dataset_script.parquet_layout import DATA, Shard, is_shard_name
from hf_kdmri.whole_files import sha256_of, sync_folder, whole_file, write_whole

ROWS_PER_GROUP = 100  # about 10 MB of 8-bit slices: what a reader of one row has to fetch, and the Hub's viewer
CARD, CHECKSUMS = "README.md", "checksums.sha256"
STATE, LOCK, UNFINISHED = ".convert-state.json", ".convert.lock", ".data.unfinished"
CARD_MARK = "<!-- Written by dataset_script.convert, which replaces this file; edit a copy. -->"


class OutFolderError(ValueError):
    """The folder to write to cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class WrittenShard:
    """What a finished shard is: rows, size in bytes, sha256."""

    rows: int
    bytes: int
    sha256: str


def write_shard(
    path: Path, features: datasets.Features, rows: Callable[[], Iterator[tuple[Any, dict[str, Any]]]]
) -> WrittenShard:
    """Write one shard under its name at once and for good, or not at all.

    The file has a page index, row groups of `ROWS_PER_GROUP`, chunks cut by content (the Hub stores those that two
    versions share once), and the features in its schema. The same rows give the same bytes.

    Args:
        path: The file.
        features: Columns.
        rows: Gives pairs of a key and a row, as `_generate_examples` of a builder does.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    count = 0
    with (
        whole_file(path) as stream,
        ParquetWriter(
            features=features, stream=stream, writer_batch_size=ROWS_PER_GROUP, embed_local_files=True
        ) as writer,
    ):
        for _, row in rows():
            writer.write(features.encode_example(row))
            count += 1
        writer.finalize(close_stream=False)
    return WrittenShard(count, path.stat().st_size, sha256_of(path))


class ConversionFolder:
    """The folder that a conversion writes to, and what is finished in it.

    Args:
        out: The folder; made by `open`.
    """

    def __init__(self, out: str | Path) -> None:
        """Touch nothing yet."""
        self.out = Path(out)
        self.options: dict[str, Any] = {}
        self.shards: dict[str, WrittenShard] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other conversions out of it."""
        if self.out.exists() and not self.out.is_dir():
            raise OutFolderError(f"{self.out} is a file; give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with WeakFileLock(self.out / LOCK, timeout=0.1):
                yield
        except TimeoutError as error:
            raise OutFolderError(f"{self.out}: another conversion is writing there; wait for it or stop it") from error

    @property
    def data(self) -> Path:
        """Where the shards lie: `data/` once all are there, a hidden folder until then."""
        return self.out / (DATA if (self.out / DATA).is_dir() else UNFINISHED)

    def resume(self, options: dict[str, Any], shards: Sequence[Shard], *, overwrite: bool = False) -> list[Shard]:
        """Check what is there, and withdraw `data/`, card and checksums if any shard has to be written.

        Args:
            options: All that the shards' content depends on; JSON values.
            shards: All shards.
            overwrite: Replace shards of other options, and write beside files that are not a conversion's.

        Returns:
            The shards that are missing or damaged.

        Raises:
            OutFolderError: another conversion's shards, or files that are not ours.
        """
        for name in (STATE, CHECKSUMS, CARD):
            _remove_unfinished(self.out, name)
        earlier = self._read_state()
        strangers = {path.name for path in self.out.iterdir()} - {LOCK}
        if earlier is None and strangers and not overwrite:
            raise OutFolderError(
                f"{self.out} holds {_some(strangers)} but no {STATE} of an earlier conversion; give an empty folder, "
                f"or --overwrite to write beside these files"
            )
        card = self.out / CARD
        if card.exists() and CARD_MARK not in card.read_text("utf-8", errors="replace"):
            raise OutFolderError(f"{card} was not written by a conversion; move it away, then run again")
        if (self.out / DATA).exists() and (self.out / UNFINISHED).exists():
            raise OutFolderError(f"{self.out} holds {DATA} and {UNFINISHED}; move one of them away, then run again")
        before, recorded = earlier or ({}, {})
        wanted = {shard.name for shard in shards}
        loaded = self.data.iterdir() if self.data.is_dir() else ()
        if strays := {path.name for path in loaded if is_shard_name(path.name)} - wanted - set(recorded):
            raise OutFolderError(
                f"{self.data} holds {_some(strays)}, which would be loaded, too; move them away, then run again"
            )
        if earlier is not None and before != options:
            changed = [key for key in {**before, **options} if before.get(key) != options.get(key)]
            if not overwrite:
                told = "; ".join(_change(key, before.get(key), options.get(key)) for key in changed)
                raise OutFolderError(
                    f"{self.out} holds a conversion with other options ({told}); give another folder, or --overwrite "
                    f"to replace it"
                )
            self._withdraw()
            for name in recorded:
                (self.data / name).unlink(missing_ok=True)
            recorded = {}
        self.options = options
        self.shards = {
            name: shard for name, shard in recorded.items() if name in wanted and self._is_whole(name, shard)
        }
        missing = [shard for shard in shards if shard.name not in self.shards]
        if missing or not (self.out / DATA).is_dir():
            self._withdraw()
            self._write_state()
            self.data.mkdir(exist_ok=True)
            for shard in missing:
                _remove_unfinished(self.data, shard.name)
        return missing

    def record(self, name: str, written: WrittenShard) -> None:
        """Remember that a shard is finished."""
        self.shards[name] = written
        self._write_state()

    def finish(self, card: str) -> None:
        """Write the checksums and the card, then make the shards visible."""
        self.shards = dict(sorted(self.shards.items()))
        self._write_state()
        lines = [f"{shard.sha256}  {DATA}/{name}\n" for name, shard in self.shards.items()]
        write_whole(self.out / CHECKSUMS, "".join(lines))
        write_whole(self.out / CARD, card)
        if not (self.out / DATA).is_dir():
            os.replace(self.out / UNFINISHED, self.out / DATA)
            sync_folder(self.out)

    def published_files(self) -> list[str]:
        """Return what belongs on the Hub, relative to the folder, the card last."""
        return [*(f"{DATA}/{name}" for name in self.shards), CHECKSUMS, CARD]

    def open_finished(self) -> None:
        """Read what a finished conversion wrote, so that it can be published without its source.

        Raises:
            OutFolderError: no conversion, one that is not finished, or a shard that is missing or damaged.
        """
        state = self._read_state() if self.out.is_dir() else None
        if state is None:
            raise OutFolderError(f"{self.out} holds no conversion; python -m dataset_script.convert --out makes one")
        self.options, self.shards = state
        whole = all((self.out / name).exists() for name in (DATA, CARD, CHECKSUMS))
        damaged = [name for name, shard in self.shards.items() if not self._is_whole(name, shard)]
        if damaged or not whole:
            what = _some(set(damaged)) if damaged else "its card or its shards"
            raise OutFolderError(f"{self.out}: {what} missing or damaged; run the conversion again, which goes on")

    def _withdraw(self) -> None:
        """Nothing loads from here on, until `finish`."""
        if (self.out / DATA).is_dir():
            os.replace(self.out / DATA, self.out / UNFINISHED)
        for name in (CARD, CHECKSUMS):
            (self.out / name).unlink(missing_ok=True)
        sync_folder(self.out)

    def _is_whole(self, name: str, shard: WrittenShard) -> bool:
        path = self.data / name
        return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256

    def _read_state(self) -> tuple[dict[str, Any], dict[str, WrittenShard]] | None:
        path = self.out / STATE
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_text("utf-8"))
            return state["options"], {name: WrittenShard(**shard) for name, shard in state["shards"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutFolderError(f"{path} is damaged ({error}); remove {self.out}, then run again") from error

    def _write_state(self) -> None:
        shards = {name: asdict(shard) for name, shard in self.shards.items()}
        write_whole(self.out / STATE, json.dumps({"options": self.options, "shards": shards}, indent=1) + "\n")


def explain_os_error(error: OSError, out: str | Path) -> str:
    """Return what to do about a full or forbidden disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way_out = "the disk is full; free some space and run the same command again, which goes on from here"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        way_out = "not permitted; give a folder that you may write to"
    else:
        way_out = "run the same command again, which goes on from here"
    return f"{error.filename or out}: {error.strerror or error}: {way_out}"


def _remove_unfinished(folder: Path, name: str) -> None:
    """Remove what a run that was killed left of a file."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink()


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")


def _change(key: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list) and set(before) != set(now):
        gone, new = [value for value in before if value not in now], [value for value in now if value not in before]
        return f"{key}: {', '.join([*(f'+{value}' for value in new), *(f'-{value}' for value in gone)])}"
    return f"{key} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
