"""What a teacher says of K seeded views of every image, kept on disk: a sweep of students asks the teacher once.

The logits, the fused spatial kernels and the fused embeddings of all views lie in three memory-mapped float16 arrays,
with a manifest that names the teacher's weights, the images, the views and the library versions. Feature maps are not
kept: they would be thousands of times larger than the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hf_kdmri
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.transfer import send
from hf_kdmri.data.views import ViewDataset
from hf_kdmri.distillation import DistillationModel, LossOptions, TeacherTargets

BLOCK = 256  # views that are built, checked and resumed as one
MANIFEST = "manifest.json"
ARRAYS = ("logits", "kernel", "embedding")
_FORMAT = 2  # 1: asked of teachers whose batch normalisation was not folded, which differ by rounding
WAY_OUT = "delete the folder {folder} to build it again"
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
_VERSIONED = ("torch", "timm", "numpy")


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
        precision: of the teacher's forward: its dtype, or what accelerate calls mixed precision ("no", "bf16", "fp16").
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
        "teacher_precision": _PRECISIONS.get(precision, precision.removeprefix("torch.")),
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


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a cache that was built to the end."""
    return (folder / MANIFEST).is_file()


def open_teacher_cache(folder: Path, facts: Mapping[str, Any]) -> TeacherCache:
    """Open a finished cache after checking that it is the one asked for, and whole.

    Raises:
        TeacherCacheError: the cache is of other facts (they are named), unfinished, or damaged.
    """
    if not is_finished(folder):
        raise TeacherCacheError(f"there is no finished teacher cache in {folder}")
    manifest = _read_manifest(folder)
    refuse_other_facts(folder, manifest["facts"], facts)
    arrays = {}
    for name, shape in manifest["arrays"].items():
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise TeacherCacheError(f"{path} cannot be read ({error}); {WAY_OUT.format(folder=folder)}") from error
        if list(arrays[name].shape) != shape or arrays[name].dtype != np.float16:
            raise TeacherCacheError(
                f"{path} is {arrays[name].dtype} {arrays[name].shape}, the manifest says float16 {shape}; "
                f"{WAY_OUT.format(folder=folder)}"
            )
    for block, checksum in enumerate(manifest["blocks"]):
        if block_checksum(arrays, block) != checksum:
            raise TeacherCacheError(
                f"views {block * BLOCK} to {(block + 1) * BLOCK - 1} of the teacher cache in {folder} are damaged: "
                f"their checksum is not the manifest's; {WAY_OUT.format(folder=folder)}"
            )
    return TeacherCache(folder, facts["images"], facts["views_per_image"], facts["geometry_grid"], arrays)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        views = manifest["facts"]["images"] * manifest["facts"]["views_per_image"]
        whole = sorted(manifest["arrays"]) == sorted(ARRAYS) and len(manifest["blocks"]) == -(-views // BLOCK)
    except (ValueError, KeyError, TypeError):  # no JSON, not even text, or other JSON
        whole = False
    if not whole:
        raise TeacherCacheError(f"{folder / MANIFEST} is damaged; {WAY_OUT.format(folder=folder)}")
    return manifest


def refuse_other_facts(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what a folder's cache was built for with what is asked for.

    Raises:
        TeacherCacheError: they differ; each difference is named.
    """
    names = sorted(there.keys() | now.keys())
    changed = [name for name in names if there.get(name) != now.get(name)]
    if changed:
        difference = "\n".join(f"  {name}: {there.get(name)} there, {now.get(name)} now" for name in changed)
        way_out = "choose another --teacher_cache, or delete that folder"
        if changed == ["views_per_image"]:
            way_out += f", or train on its views by --views_per_image {there.get('views_per_image')}"
        raise TeacherCacheError(f"{folder} holds the teacher cache of something else:\n{difference}\n{way_out}")


def block_checksum(arrays: Mapping[str, np.ndarray], block: int) -> int:
    """CRC-32 of one block's views in all arrays."""
    checksum = 0
    for name in sorted(arrays):
        rows = np.ascontiguousarray(arrays[name][block * BLOCK : (block + 1) * BLOCK])
        checksum = zlib.crc32(rows.data, checksum)
    return checksum


def kept_targets(told: TeacherTargets) -> dict[str, np.ndarray]:
    """What is kept of a teacher's answers about some views: `ARRAYS`, float16, infinite where that cannot hold them."""
    assert told.kernel is not None and told.embedding is not None
    rows, columns = torch.triu_indices(told.kernel.shape[-1], told.kernel.shape[-1], device=told.kernel.device)
    values = (told.logits, told.kernel[:, rows, columns], told.embedding)
    return {name: value.float().cpu().numpy().astype(np.float16) for name, value in zip(ARRAYS, values, strict=True)}


def _whole_kernel(triangle: Tensor, positions: int) -> Tensor:
    rows, columns = torch.triu_indices(positions, positions)
    kernel = triangle.new_empty(len(triangle), positions, positions)
    kernel[:, rows, columns] = triangle
    kernel[:, columns, rows] = triangle
    return kernel
