"""What a teacher says of K seeded views of every image, kept on disk: a sweep of students asks the teacher once.

The logits, the fused spatial kernels and the fused embeddings of all views lie in three memory-mapped float16 arrays,
with a manifest that names the teacher's weights, the images, the views and the library versions. Feature maps are not
kept: they would be thousands of times larger than the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

import hf_kdmri
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.transfer import send
from hf_kdmri.data.views import ViewDataset
from hf_kdmri.distillation import DistillationModel, LossOptions, TeacherTargets
from hf_kdmri.whole_files import write_whole

BLOCK = 256  # views that are built, checked and resumed as one
MANIFEST = "manifest.json"
_UNFINISHED = "unfinished.json"
_FORMAT = 1
_VERSIONED = ("torch", "timm", "kornia")


class TeacherCacheError(ValueError):
    """A cache that cannot be used, and why."""


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache.

    Args:
        folder: where it lies.
        images: N.
        views_per_image: K.
        grid: cells per side of the kernels' raster.
        arrays: `logits` (K · N, C), `kernel` (K · N, P (P + 1) / 2, the upper triangle) and `embedding` (K · N, D),
            float16; row k · N + i is view k of image i.
    """

    folder: Path
    images: int
    views_per_image: int
    grid: int
    arrays: Mapping[str, np.ndarray]

    def read(
        self, options: LossOptions, index: Tensor | np.ndarray, view: int, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """The targets of one view of some images, in float32, for `DistillationModel.forward(targets=…)`.

        Args:
            options: which terms need targets.
            index: (B,) position of each image in its data set.
            view: 0 to K − 1.
            device: where the targets are wanted; default the CPU.
        """
        rows = view * self.images + np.asarray(index.cpu() if isinstance(index, Tensor) else index)
        wanted = {"logits": True, "kernel": options.geometry_weight > 0, "embedding": options.sample_weight > 0}
        read = {name: torch.from_numpy(self.arrays[name][rows]).float() for name, on in wanted.items() if on}
        if "kernel" in read:
            read["kernel"] = _whole_kernel(read["kernel"], self.grid**2)
        return {name: send(value, device or torch.device("cpu")) for name, value in read.items()}


def cache_facts(
    model: DistillationModel,
    views: ViewDataset,
    augmentation: RandomViews | None,
    *,
    seed: int,
    views_per_image: int,
    precision: str,
) -> dict[str, Any]:
    """Everything that decides what a cache holds.

    Args:
        model: its teacher, its classes, and the raster and stage weights of its loss.
        views: the training images.
        augmentation: how views are drawn; None for the images as they are.
        seed: of the views.
        views_per_image: K.
        precision: of the teacher's forward, as `DistillationTrainingArguments` names it.
    """
    teacher = model.teacher
    if teacher is None:
        raise TeacherCacheError("a teacher cache needs a teacher")
    weights = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().numpy().tobytes())
    images = hashlib.sha256()
    for chunk in views.chunks:
        images.update(np.ascontiguousarray(chunk).data)
    return {
        "format": _FORMAT,
        "teacher": teacher.config.architecture,
        "teacher_weights": weights.hexdigest(),
        "teacher_image_size": teacher.image_size,
        "teacher_normalisation": [list(teacher.pixel_mean), list(teacher.pixel_std)],
        "teacher_scales": len(teacher.stage_channels),
        "teacher_precision": precision,
        "classes": model.student.labels,
        "images": len(views),
        "image_size": views.size,
        "images_sha256": images.hexdigest(),
        "views_per_image": views_per_image,
        "views": None if augmentation is None else json.loads(json.dumps(dataclasses.asdict(augmentation))),
        "views_seed": None if augmentation is None else seed,
        "geometry_grid": model.loss_options.geometry_grid,
        "stage_weights": model.loss_options.stage_weights,
        "versions": {"hf_kdmri": hf_kdmri.__version__, **{name: version(name) for name in _VERSIONED}},
    }


def open_teacher_cache(folder: Path, facts: Mapping[str, Any]) -> TeacherCache:
    """Open a finished cache after checking that it is the one asked for, and whole.

    Raises:
        TeacherCacheError: the cache is of other facts (they are named), unfinished, or damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise TeacherCacheError(f"there is no finished teacher cache in {folder}")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    _refuse_other_facts(folder, manifest["facts"], facts)
    arrays = {}
    for name, shape in manifest["arrays"].items():
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TeacherCacheError(f"{path} cannot be read ({error}); {_WAY_OUT.format(folder=folder)}") from error
        if list(arrays[name].shape) != shape or arrays[name].dtype != np.float16:
            raise TeacherCacheError(
                f"{path} is {arrays[name].dtype} {arrays[name].shape}, the manifest says float16 {shape}; "
                f"{_WAY_OUT.format(folder=folder)}"
            )
    for block, checksum in enumerate(manifest["blocks"]):
        if _checksum(arrays, block) != checksum:
            raise TeacherCacheError(
                f"views {block * BLOCK} to {(block + 1) * BLOCK - 1} of the teacher cache in {folder} are damaged: "
                f"their checksum is not the manifest's; {_WAY_OUT.format(folder=folder)}"
            )
    return TeacherCache(folder, facts["images"], facts["views_per_image"], facts["geometry_grid"], arrays)


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
    state = PartialState()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another run that wants the same cache at the same time waits for this one to build it.
    lock = FileLock(f"{folder}.lock") if state.is_main_process else nullcontext()
    with lock:
        state.wait_for_everyone()
        if not (folder / MANIFEST).is_file():
            # One batch tells the shapes, and so the size, before anything is written.
            sample = _ask(model, views, augmentation, facts, range(2), device, precision)
            rows = facts["images"] * facts["views_per_image"]
            shapes = {name: (rows, value.shape[1]) for name, value in sample.items()}
            if state.is_main_process:
                _start(folder, facts, shapes)
            state.wait_for_everyone()
            _build(folder, model, views, augmentation, facts, device, batch_size, precision, state, progress)
            state.wait_for_everyone()
            if state.is_main_process:
                _finish(folder, facts, shapes)
            state.wait_for_everyone()
    return open_teacher_cache(folder, facts)


_WAY_OUT = "delete the folder {folder} to build it again"


def _refuse_other_facts(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = sorted(there.keys() | now.keys())
    changed = [name for name in names if there.get(name) != now.get(name)]
    if changed:
        difference = "\n".join(f"  {name}: {there.get(name)} there, {now.get(name)} now" for name in changed)
        raise TeacherCacheError(
            f"{folder} holds the teacher cache of something else:\n{difference}\n"
            "choose another --teacher_cache, or delete that folder"
        )


def _start(folder: Path, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started = folder / _UNFINISHED
    if started.is_file():
        _refuse_other_facts(folder, json.loads(started.read_text(encoding="utf-8")), facts)
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
    write_whole(started, json.dumps(facts, indent=2) + "\n")
    for name, shape in shapes.items():
        unfinished = folder / f".{name}.npy"
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape).flush()
        unfinished.replace(folder / f"{name}.npy")


def _build(
    folder: Path,
    model: DistillationModel,
    views: ViewDataset,
    augmentation: RandomViews | None,
    facts: Mapping[str, Any],
    device: torch.device,
    batch_size: int,
    precision: Callable[[], AbstractContextManager],
    state: PartialState,
    progress: bool,
) -> None:
    """This process's share of the blocks that are missing."""
    total = facts["images"] * facts["views_per_image"]
    done = _finished_blocks(folder)
    missing = [block for block in range(-(-total // BLOCK)) if block not in done]
    mine = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all have read the logs before one of them writes
    names = ("logits", "kernel", "embedding")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False) for name in names}
    with open(folder / f"blocks-{state.process_index}.jsonl", "a", encoding="utf-8") as log:
        log.write("\n")  # a line that was cut short stays alone
        for block in tqdm(
            mine, desc="Asking the teacher", unit="block", disable=not progress or state.process_index > 0
        ):
            rows = range(block * BLOCK, min(total, (block + 1) * BLOCK))
            for start in range(rows.start, rows.stop, batch_size):
                part = range(start, min(rows.stop, start + batch_size))
                for name, value in _ask(model, views, augmentation, facts, part, device, precision).items():
                    arrays[name][part.start : part.stop] = value
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]  # a memmap
            log.write(json.dumps({"block": block, "checksum": _checksum(arrays, block)}) + "\n")
            log.flush()
            os.fsync(log.fileno())


def _ask(
    model: DistillationModel,
    views: ViewDataset,
    augmentation: RandomViews | None,
    facts: Mapping[str, Any],
    rows: range,
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
) -> dict[str, np.ndarray]:
    options = dataclasses.replace(model.loss_options, geometry_weight=1.0, sample_weight=1.0, feature_weight=0.0)
    parts: list[TeacherTargets] = []
    for view, index in _by_view(rows, facts["images"]):
        batch = views.__getitems__(index)
        pixels = batch["pixel_values"].to(device)
        if augmentation is not None:
            pixels = augmentation(pixels, batch["index"], seed=facts["views_seed"], epoch=view)
        with precision():
            parts.append(model.ask_teacher(pixels, options))
    joined = {
        "logits": torch.cat([part.logits for part in parts]),
        "kernel": torch.cat([_triangle(part.kernel) for part in parts if part.kernel is not None]),
        "embedding": torch.cat([part.embedding for part in parts if part.embedding is not None]),
    }
    halves = {name: value.float().cpu().numpy().astype(np.float16) for name, value in joined.items()}
    for name, half in halves.items():
        if not np.isfinite(half).all():
            raise TeacherCacheError(
                f"the teacher's {name} of views {rows.start} to {rows.stop - 1} are not finite in half precision; is "
                "the teacher trained?"
            )
    return halves


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


def _checksum(arrays: Mapping[str, np.ndarray], block: int) -> int:
    checksum = 0
    for name in sorted(arrays):
        rows = np.ascontiguousarray(arrays[name][block * BLOCK : (block + 1) * BLOCK])
        checksum = zlib.crc32(rows.data, checksum)
    return checksum


def _triangle(kernel: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(kernel.shape[-1], kernel.shape[-1], device=kernel.device)
    return kernel[:, rows, columns]


def _whole_kernel(triangle: Tensor, positions: int) -> Tensor:
    rows, columns = torch.triu_indices(positions, positions)
    kernel = triangle.new_empty(len(triangle), positions, positions)
    kernel[:, rows, columns] = triangle
    kernel[:, columns, rows] = triangle
    return kernel
