"""Slices as views: decoded and resized once, kept as memory-mapped uint8, read in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import Dataset


@dataclass
class ViewDataset(Dataset):
    """Views of one split, ready for a `DataLoader` that asks for whole batches.

    Args:
        chunks: memory-mapped arrays (n_k, C, S, S) uint8 that follow one another.
        labels: (N,) class indices.
        size: S in pixels.
    """

    chunks: list[np.ndarray]
    labels: np.ndarray
    size: int

    def __post_init__(self) -> None:
        """Find where each chunk starts."""
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self.chunks])
        if self._starts[-1] != len(self.labels):
            raise ValueError(f"{self._starts[-1]} views, but {len(self.labels)} labels")

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.labels)

    def view(self, index: int) -> np.ndarray:
        """One view, (C, S, S) uint8, without a copy."""
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.chunks[chunk][index - self._starts[chunk]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One view as `pixel_values`, its `labels` and its `index`."""
        return {
            "pixel_values": torch.from_numpy(self.view(index).copy()),
            "labels": int(self.labels[index]),
            "index": int(index),
        }

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch at once, already collated; see `collate_views`."""
        rows = np.asarray(indices)
        return {
            "pixel_values": torch.from_numpy(np.stack([self.view(row) for row in rows])),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows.astype(np.int64)),
        }


def collate_views(batch: dict[str, torch.Tensor] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pass a collated batch on; stack a list of single views."""
    return batch if isinstance(batch, dict) else torch.utils.data.default_collate(batch)


def prepare_views(
    dataset: datasets.Dataset,
    size: int,
    *,
    image_column: str = "image",
    label_column: str = "label",
    num_proc: int | None = None,
    description: str = "Resizing",
) -> ViewDataset:
    """Decode and resize every image of a split once.

    The result is an Arrow file beside the data set's own cache, memory-mapped, keyed by the data and the arguments, so
    a second run and every process of a distributed one read it without decoding anything.

    The picture is resized bicubically, exactly as the saved models' own image processor does.

    Args:
        dataset: one split with an `Image` column and a `ClassLabel` column.
        size: side of the square in pixels.
        image_column: name of the image column.
        label_column: name of the label column.
        num_proc: processes that decode; None for this one alone.
        description: what the progress bar says.

    Returns:
        The views, in the split's order. Grey images keep one channel, others three.
    """
    grey = dataset[0][image_column].mode in ("L", "1") if len(dataset) else True
    views = dataset.map(
        _resize_batch,
        fn_kwargs={"size": size, "mode": "L" if grey else "RGB", "image_column": image_column},
        batched=True,
        batch_size=64,
        num_proc=num_proc,
        remove_columns=dataset.column_names,
        features=datasets.Features({"view": datasets.Value("binary")}),
        desc=f"{description} to {size} px",
    )
    column = views.data.table.column("view")
    if views._indices is not None:
        raise ValueError("the mapped views are expected in storage order; call prepare_views on a flat data set")
    chunks = [_as_array(chunk, channels=1 if grey else 3, size=size) for chunk in column.chunks if len(chunk)]
    return ViewDataset(chunks, np.asarray(dataset[label_column], dtype=np.int64), size)


def resize_to_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` × `size` pixels, bicubic, whatever the aspect ratio, as the saved models' processor does."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _resize_batch(batch: dict[str, list], size: int, mode: str, image_column: str) -> dict[str, list[bytes]]:
    views = []
    for image in batch[image_column]:
        pixels = np.asarray(resize_to_square(image.convert(mode), size))
        views.append(np.ascontiguousarray(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)).tobytes())
    return {"view": views}


def _as_array(chunk: pa.Array, *, channels: int, size: int) -> np.ndarray:
    """See a binary column whose rows have one length as an array, without a copy."""
    item = channels * size * size
    storage = np.frombuffer(chunk.buffers()[2], dtype=np.uint8)
    offset_type = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
    start = int(np.frombuffer(chunk.buffers()[1], dtype=offset_type)[chunk.offset])
    return storage[start : start + len(chunk) * item].reshape(len(chunk), channels, size, size)
