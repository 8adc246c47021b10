"""Ask a teacher for K seeded views of every image and keep the answers: in blocks, over all processes, resumable."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from tqdm.auto import tqdm

from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.views import ViewDataset
from hf_kdmri.distillation import DistillationModel
from hf_kdmri.training.teacher_cache import (
    ARRAYS,
    BLOCK,
    MANIFEST,
    WAY_OUT,
    TeacherCache,
    TeacherCacheError,
    block_checksum,
    is_finished,
    kept_targets,
    open_teacher_cache,
    refuse_other_facts,
)
from hf_kdmri.whole_files import write_whole

_UNFINISHED = "unfinished.json"


def prepare_teacher_cache(
    folder: Path,
    model: DistillationModel,
    views: ViewDataset,
    augmentation: RandomViews | None,
    facts: Mapping[str, Any],
    *,
    device: torch.device,
    batch_size: int,
    precision: Callable[[], AbstractContextManager],
    progress: bool = True,
) -> TeacherCache:
    """Open the cache in a folder, or build it: in one pass over all processes, going on where an earlier try stopped.

    Args:
        folder: for this cache alone; made if absent.
        model: on `device`; its teacher is asked.
        views: the training images.
        augmentation: draws the views.
        facts: of `cache_facts`.
        device: where the teacher runs.
        batch_size: views per forward pass.
        precision: makes the autocast of the run, which is entered around each forward.
        progress: show a bar.

    Raises:
        TeacherCacheError: the folder holds another cache, or the disk has no room for this one (its size is named).
    """
    asking = _Asking(model, views, augmentation, facts, device, batch_size, precision)
    state = PartialState()
    if folder.exists() and not folder.is_dir():
        raise TeacherCacheError(f"{folder} is a file; --teacher_cache is the name of a folder")
    with _lock(folder) if state.is_main_process and not is_finished(folder) else nullcontext():
        state.wait_for_everyone()
        if not is_finished(folder):
            # One batch tells the shapes, and so the size, before anything is written.
            sample = asking.answers(range(2))
            rows = facts["images"] * facts["views_per_image"]
            shapes = {name: (rows, value.shape[1]) for name, value in sample.items()}
            if state.is_main_process:
                _start(folder, facts, shapes)
            state.wait_for_everyone()
            _build(folder, asking, state, progress)
            state.wait_for_everyone()
            if state.is_main_process:
                _finish(folder, facts, shapes)
            state.wait_for_everyone()
    return open_teacher_cache(folder, facts)


def _lock(folder: Path) -> FileLock:
    """Another run that wants the same cache at the same time waits for this one to build it; readers need none."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{folder}.lock").touch()
    except OSError as error:
        raise TeacherCacheError(f"no teacher cache can be built in {folder}: {error}") from error
    return FileLock(f"{folder}.lock")


@dataclass(frozen=True)
class _Asking:
    """How the teacher is asked; see `prepare_teacher_cache`."""

    model: DistillationModel
    views: ViewDataset
    augmentation: RandomViews | None
    facts: Mapping[str, Any]
    device: torch.device
    batch_size: int
    precision: Callable[[], AbstractContextManager]

    @property
    def total(self) -> int:
        """Views of all images."""
        return self.facts["images"] * self.facts["views_per_image"]

    def answers(self, rows: range) -> dict[str, np.ndarray]:
        """What the teacher says of some views, in float16.

        Raises:
            TeacherCacheError: half precision cannot hold it.
        """
        options = dataclasses.replace(
            self.model.loss_options, geometry_weight=1.0, sample_weight=1.0, feature_weight=0.0
        )
        parts = []
        for view, index in _by_view(rows, self.facts["images"]):
            batch = self.views.__getitems__(index)
            pixels = batch["pixel_values"].to(self.device)
            if self.augmentation is not None:
                pixels = self.augmentation(pixels, batch["index"], seed=self.facts["views_seed"], epoch=view)
            with self.precision():
                parts.append(kept_targets(self.model.ask_teacher(pixels, options)))
        halves = {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
        for name, half in halves.items():
            if not np.isfinite(half).all():
                raise TeacherCacheError(
                    f"the teacher's {name} of views {rows.start} to {rows.stop - 1} are not finite in half precision; "
                    "is the teacher trained?"
                )
        return halves


def _start(folder: Path, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started = folder / _UNFINISHED
    if started.is_file():
        try:
            there = json.loads(started.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TeacherCacheError(f"{started} is damaged; {WAY_OUT.format(folder=folder)}") from error
        refuse_other_facts(folder, there, facts)
    elif any(folder.iterdir()):
        raise TeacherCacheError(f"{folder} is not empty and holds no teacher cache; choose another --teacher_cache")
    if all((folder / f"{name}.npy").is_file() for name in shapes):
        return  # an earlier try is continued
    size = sum(rows * columns * 2 for rows, columns in shapes.values())
    views = facts["images"] * facts["views_per_image"]
    print(f"Teacher cache: {views} views of {facts['images']} images, {size / 2**20:.0f} MiB, in {folder}", flush=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TeacherCacheError(
            f"the teacher cache needs {size / 2**20:.0f} MiB, but {folder} has {free / 2**20:.0f} MiB free; fewer "
            f"--views_per_image (now {facts['views_per_image']}) or a smaller --geometry_grid make it smaller"
        )
    for log in folder.glob("blocks-*.jsonl"):
        log.unlink()  # what it says was built went with an array that is gone
    write_whole(started, json.dumps(facts, indent=2) + "\n")
    for name, shape in shapes.items():
        unfinished = folder / f".{name}.npy"
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape).flush()
        _reserve(unfinished)
        unfinished.replace(folder / f"{name}.npy")


def _reserve(path: Path) -> None:
    """Have the disk set all of a file apart: writing to a mapped hole of it on a full disk would kill the process."""
    if not hasattr(os, "posix_fallocate"):  # only Linux and some Unixes have it
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise TeacherCacheError(f"the disk has no room for {path.name} in {path.parent}: {error}") from error


def _build(folder: Path, asking: _Asking, state: PartialState, progress: bool) -> None:
    """This process's share of the blocks that are missing."""
    done = _finished_blocks(folder)
    missing = [block for block in range(-(-asking.total // BLOCK)) if block not in done]
    mine = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all have read the logs before one of them writes
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False) for name in ARRAYS}
    with open(folder / f"blocks-{state.process_index}.jsonl", "a", encoding="utf-8") as log:
        log.write("\n")  # a line that was cut short stays alone
        for block in tqdm(
            mine, desc="Asking the teacher", unit="block", disable=not progress or state.process_index > 0
        ):
            rows = range(block * BLOCK, min(asking.total, (block + 1) * BLOCK))
            for start in range(rows.start, rows.stop, asking.batch_size):
                part = range(start, min(rows.stop, start + asking.batch_size))
                for name, value in asking.answers(part).items():
                    arrays[name][part.start : part.stop] = value
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]  # a memmap
            log.write(json.dumps({"block": block, "checksum": block_checksum(arrays, block)}) + "\n")
            log.flush()
            os.fsync(log.fileno())


def _by_view(rows: range, images: int) -> Iterator[tuple[int, list[int]]]:
    """Divide rows k · N + i by their view k, since views of one epoch are drawn together."""
    start = rows.start
    while start < rows.stop:
        view = start // images
        stop = min(rows.stop, (view + 1) * images)
        yield view, list(range(start - view * images, stop - view * images))
        start = stop


def _finish(folder: Path, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    blocks = _finished_blocks(folder)
    expected = range(-(-next(iter(shapes.values()))[0] // BLOCK))
    if lacking := [block for block in expected if block not in blocks]:
        raise TeacherCacheError(
            f"{len(lacking)} of {len(expected)} blocks of the teacher cache in {folder} were not built, the first is "
            f"{lacking[0]}; run the same command again"
        )
    manifest = {
        "facts": facts,
        "arrays": {name: list(shape) for name, shape in shapes.items()},
        "blocks": [blocks[block] for block in sorted(blocks)],
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for leftover in (folder / _UNFINISHED, *folder.glob("blocks-*.jsonl")):
        leftover.unlink()


def _finished_blocks(folder: Path) -> dict[int, int]:
    blocks = {}
    for path in folder.glob("blocks-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or cut short by a kill: that block is built again
            blocks[row["block"]] = row["checksum"]
    return blocks
