"""Training images as an endless stream: shared by processes and workers, decoded on the way, never held as a whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from hf_kdmri.data.pictures import read_picture_bytes
from hf_kdmri.data.views import named_picture, picture_as_view


@dataclass
class StreamedViews(IterableDataset):
    """Whole batches of one process's share of a stream, pass after pass without end, ready for a `DataLoader`.

    In every pass each image comes once, to one worker of one process. A process that is through with its share begins
    its next pass; nobody waits for another, so `max_steps` ends the training. Batches always have their full size: one
    may hold the last images of a pass and the first of the next.

    An image is known by its content: `index` is 63 bits of a hash of its file. So its random views stay the same
    wherever the stream is cut, with any number of processes and workers, and byte-equal files get equal views.

    Only encoded images wait in the shuffle buffer. Memory is that of `buffer` files and of the batches on their way,
    for each worker, whatever the length of the stream.

    Args:
        stream: with an `Image(decode=False)` column `image` and a `ClassLabel` column `label`.
        size: S in pixels.
        batch_size: B, of this process.
        grey: True for one channel, else three.
        seed: of the order.
        buffer: images among which the next one is drawn at random; 1 keeps the order within a shard.
        process_index: of this process.
        num_processes: that share the stream.
        skip_batches: that many of the first batches are empty dicts, read but not decoded: where training goes on.
    """

    stream: datasets.IterableDataset
    size: int
    batch_size: int
    grey: bool = True
    seed: int = 0
    buffer: int = 1000
    process_index: int = 0
    num_processes: int = 1
    skip_batches: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no batch."""
        for name in ("size", "batch_size", "buffer", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")

    @property
    def most_workers(self) -> int:
        """Workers of a process that have something to read: shards of the stream that it can divide among them."""
        shards = self.stream.num_shards
        return shards if shards % self.num_processes else shards // self.num_processes

    def check_workers(self, workers: int) -> None:
        """Refuse workers that would have no shard to read.

        Raises:
            ValueError: more workers than shards.
        """
        if workers > self.most_workers:
            raise ValueError(
                f"dataloader_num_workers is {workers}, but the stream has {self.stream.num_shards} shards (files) for "
                f"{self.num_processes} processes, enough for {self.most_workers} workers each; ask for no more, or "
                "save the set in more files"
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches: `pixel_values` (B, C, S, S) uint8, `labels` (B,), and arrays (B,) `index`, `epoch` (the pass).

        Raises:
            PictureError: an image cannot be read; the message names it.
            ValueError: an image has no label, or there are no images at all.
        """
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        skipped = max(0, -(-(self.skip_batches - number) // workers))  # batches are taken from the workers in turn
        rows = self._rows()
        for position in itertools.count():
            batch = list(itertools.islice(rows, self.batch_size))
            yield {} if position < skipped else self._decoded(batch)

    def one_pass(self, number: int) -> datasets.IterableDataset:
        """This process's share in the order of one pass, counted from 0; within a worker, that worker's part of it."""
        # The order follows from the number alone: `set_epoch` writes to memory that all workers share, and they are not
        # in the same pass at the same time.
        shuffled = self.stream.shuffle(seed=self.seed + number, buffer_size=self.buffer)
        return split_dataset_by_node(shuffled, self.process_index, self.num_processes)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in itertools.count():
            empty = True
            for row in self.one_pass(number):
                empty = False
                yield number, row
            if empty:
                raise ValueError(
                    f"process {self.process_index} of {self.num_processes} found no image in its share of the stream; "
                    "save the set in files of about equal size, or use fewer processes and workers"
                )

    def _decoded(self, rows: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        mode = "L" if self.grey else "RGB"
        views, index, labels = [], [], []
        for _, row in rows:
            views.append(picture_as_view(named_picture("of the stream", row["image"]), self.size, mode))
            index.append(picture_index(read_picture_bytes(row["image"])))
            if row["label"] is None or row["label"] < 0:
                raise ValueError(f"image {row['image'].get('path') or index[-1]} of the stream has no label")
            labels.append(row["label"])
        return {
            "pixel_values": torch.from_numpy(np.stack(views)),
            "labels": torch.tensor(labels),
            # no tensors: they are of use on the host only, and would leave it
            "index": np.array(index, dtype=np.int64),
            "epoch": np.array([number for number, _ in rows], dtype=np.int64),
        }


def picture_index(encoded: bytes) -> int:
    """A number of 63 bits that tells a file from all others by its content.

    Example:
        >>> picture_index(b"one file") != picture_index(b"another")
        True
    """
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little") >> 1
