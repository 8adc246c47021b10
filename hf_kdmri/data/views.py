"""Slices as views: decoded and resized once, kept as memory-mapped uint8, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import Dataset

from hf_kdmri.data.pictures import PictureError, decode_picture, is_grey, read_picture_bytes, stored_mode


@dataclass
class ViewDataset(Dataset):
    """Views of one split, ready for a `DataLoader` that asks for whole batches.

    Args:
        chunks: memory-mapped arrays (n_k, C, S, S) uint8 that follow one another.
        labels: (N,) class indices.
        size: S in pixels.
        masks: the tumour masks of the same slices at the same size, as views of one channel, or None.
    """

    chunks: list[np.ndarray]
    labels: np.ndarray
    size: int
    masks: ViewDataset | None = None

    def __post_init__(self) -> None:
        """Find where each chunk starts."""
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self.chunks])
        if self._starts[-1] != len(self.labels):
            raise ValueError(f"{self._starts[-1]} views, but {len(self.labels)} labels")
        if self.masks is not None and (len(self.masks), self.masks.size) != (len(self), self.size):
            raise ValueError(
                f"{len(self.masks)} masks of {self.masks.size} pixels for {len(self)} views of {self.size}; prepare "
                f"both from one split at one size"
            )

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.labels)

    def view(self, index: int) -> np.ndarray:
        """One view, (C, S, S) uint8, without a copy."""
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.chunks[chunk][index - self._starts[chunk]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One view as `pixel_values`, its `labels` and `index`, and, if there are any, its `masks`."""
        item = {
            "pixel_values": torch.from_numpy(self.view(index).copy()),
            "labels": int(self.labels[index]),
            "index": int(index),
        }
        if self.masks is not None:
            item["masks"] = torch.from_numpy(self.masks.view(index).copy())
        return item

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch at once, already collated, `index` as an array; see `collate_views`."""
        rows = np.asarray(indices)
        batch = {
            "pixel_values": torch.from_numpy(np.stack([self.view(row) for row in rows])),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": rows.astype(np.int64),  # no tensor: it is of use on the host only, and would leave it
        }
        if self.masks is not None:
            batch["masks"] = torch.from_numpy(np.stack([self.masks.view(row) for row in rows]))
        return batch


def collate_views(batch: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
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

    The picture is resized bicubically, exactly as the saved models' own image processor does. What becomes of 16-bit
    pictures, palettes, alpha channels and EXIF orientation is told at `hf_kdmri.data.pictures.decode_picture`.

    Args:
        dataset: one split with an `Image` column and a `ClassLabel` column.
        size: side of the square in pixels.
        image_column: name of the image column.
        label_column: name of the label column.
        num_proc: processes that decode; None for this one alone.
        description: what the progress bar says.

    Returns:
        The views, in the split's order: one channel if every image of the split is grey, else three for all of them.

    Raises:
        PictureError: an image cannot be read; the message names it.
    """
    encoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    arguments: dict[str, Any] = {"batched": True, "batch_size": 64, "num_proc": num_proc}
    declared = dataset.features[image_column].mode
    if declared is not None:  # all have it, as the Figshare slices do: no pass over the files
        grey = is_grey(declared)
    else:
        modes = encoded.map(
            _modes_of_batch,
            fn_kwargs={"image_column": image_column},
            with_indices=True,
            remove_columns=[image_column],
            features=datasets.Features({"mode": datasets.Value("string")}),
            desc="Looking for colour",
            **arguments,
        )
        grey = all(is_grey(mode) for mode in modes.unique("mode"))
    views = encoded.map(
        _resize_batch,
        fn_kwargs={"size": size, "mode": "L" if grey else "RGB", "image_column": image_column},
        with_indices=True,
        remove_columns=[image_column],
        features=datasets.Features({"view": datasets.Value("binary")}),
        desc=f"{description} to {size} px",
        **arguments,
    )
    column = views.data.table.column("view")
    if views._indices is not None:
        raise ValueError("the mapped views are expected in storage order; call prepare_views on a flat data set")
    chunks = [_as_array(chunk, channels=1 if grey else 3, size=size) for chunk in column.chunks if len(chunk)]
    return ViewDataset(chunks, np.asarray(dataset[label_column], dtype=np.int64), size)


def resize_to_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` × `size` pixels, bicubic, whatever the aspect ratio, as the saved models' processor does."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _modes_of_batch(batch: dict[str, list], indices: list[int], image_column: str) -> dict[str, list[str]]:
    return {
        "mode": [_named(index, cell, stored_mode) for index, cell in zip(indices, batch[image_column], strict=True)]
    }


def _resize_batch(
    batch: dict[str, list], indices: list[int], size: int, mode: str, image_column: str
) -> dict[str, list[bytes]]:
    views = []
    for index, cell in zip(indices, batch[image_column], strict=True):
        views.append(picture_as_view(named_picture(index, cell), size, mode).tobytes())
    return {"view": views}


def named_picture(index: int | str, cell: dict[str, Any]) -> Image.Image:
    """Decode a cell of `datasets.Image(decode=False)`.

    Args:
        index: what the image is called in an error, beside its file.
        cell: `{"bytes": …, "path": …}`.

    Raises:
        PictureError: it cannot be read; the message names it.
    """
    return _named(index, cell, decode_picture)


def picture_as_view(image: Image.Image, size: int, mode: str) -> np.ndarray:
    """Resize a picture to a view.

    Args:
        image: as `decode_picture` gives it.
        size: S in pixels.
        mode: "L" for one channel, "RGB" for three.

    Returns:
        (C, S, S) uint8, contiguous.
    """
    pixels = np.asarray(resize_to_square(image.convert(mode), size))
    return np.ascontiguousarray(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1))


def _named(index: int | str, cell: dict[str, Any], read: Callable[[bytes], Any]) -> Any:
    """Read one picture; an error names its row and file."""
    try:
        return read(read_picture_bytes(cell))
    except PictureError as error:
        path = (cell or {}).get("path")
        raise PictureError(f"image {index}{f' ({path})' if path else ''} {error}") from error


def _as_array(chunk: pa.Array, *, channels: int, size: int) -> np.ndarray:
    """See a binary column whose rows have one length as an array, without a copy."""
    item = channels * size * size
    storage = np.frombuffer(chunk.buffers()[2], dtype=np.uint8)
    offset_type = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
    start = int(np.frombuffer(chunk.buffers()[1], dtype=offset_type)[chunk.offset])
    return storage[start : start + len(chunk) * item].reshape(len(chunk), channels, size, size)
