"""Labels and PIDs of all slices, which splitting needs before any picture is read: read once per source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets

from hf_kdmri.data.archives import SliceEntry, read_slices
from hf_kdmri.data.mat_file import read_label_and_pid
from hf_kdmri.whole_files import write_whole

_PER_TASK = 200  # slices; a task opens its archive once


def labels_and_pids(
    entries: Sequence[SliceEntry], *, cache_dir: str | Path, num_proc: int | None = None
) -> tuple[list[int], list[str]]:
    """Read the label and PID of every slice, or take them from the cache.

    The cache is a JSON file named by the entries and by size and time of the files that hold them, so every
    configuration and fold of one source shares it, and a changed file is read anew.

    Args:
        entries: The slices.
        cache_dir: Folder for the cache, made if needed.
        num_proc: Processes that read. Default: this one alone.

    Returns:
        Labels (indices into `LABEL_NAMES`) and PIDs, in the entries' order.

    Raises:
        SliceFileError: a file that is no valid slice.
        DataFolderError: a file that cannot be read.
    """
    cache = Path(cache_dir) / f"labels-and-pids-{_fingerprint(entries)}.json"
    if cache.is_file():
        rows = json.loads(cache.read_text("utf-8"))
    else:
        rows = _read_all(entries, num_proc or 1)
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps(rows))
    return [label for label, _ in rows], [pid for _, pid in rows]


def _read_all(entries: Sequence[SliceEntry], num_proc: int) -> list[tuple[int, str]]:
    tasks = [entries[start : start + _PER_TASK] for start in range(0, len(entries), _PER_TASK)]
    rows: list[tuple[int, str]] = []
    with datasets.utils.tqdm(total=len(entries), desc="Reading labels and PIDs", unit=" slices") as progress:
        if min(num_proc, len(tasks)) <= 1:
            for task in tasks:
                rows += _read(task)
                progress.update(len(task))
            return rows
        with ProcessPoolExecutor(min(num_proc, len(tasks))) as pool:
            for part in pool.map(_read, tasks):
                rows += part
                progress.update(len(part))
    return rows


def _read(entries: Sequence[SliceEntry]) -> list[tuple[int, str]]:
    return [read_label_and_pid(data, entry.name) for entry, data in read_slices(entries)]


def _fingerprint(entries: Sequence[SliceEntry]) -> str:
    stats = {path: os.stat(path) for path in sorted({entry.path for entry in entries})}
    content = [
        [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()],
        [(entry.number, entry.name) for entry in entries],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
