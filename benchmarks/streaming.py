#!/usr/bin/env python
"""A long synthetic stream through the trainer: images per second, and memory at 10 % and at 100 % of it.

    python benchmarks/streaming.py --slices 300000 --json streaming.json

Every slice is made when it is asked for, encoded as PNG, read through `StreamedViews` (shuffle buffer, decoding,
workers) and trained on once by `DistillationTrainer`, with tiny networks. Memory is what the process and its data
workers have written, pages that they share counted once (Linux: `Pss_Anon` and `Pss_Shmem`).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import torch
from networks import LABELS, untrained_pair
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import circumstances
from transformers import TrainerCallback

from hf_kdmri import (
    DistillationTrainer,
    DistillationTrainingArguments,
)
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.streams import StreamedViews
from hf_kdmri.data.views import collate_views


def main() -> None:
    """Train, print a table, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    result = summarise(*train(arguments), arguments)
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300_000, help="of the stream (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=32, help="pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--shards", type=int, default=64, help="of the stream (default: %(default)s)")
    parser.add_argument("--buffer", type=int, default=1000, help="of shuffling, per worker (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="that make and decode slices (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--teacher", default="test_resnet", help="timm name (default: %(default)s)")
    parser.add_argument("--student", default="test_resnet", help="timm name (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def slices(numbers: list[range], size: int) -> Iterator[dict[str, Any]]:
    """Make slices: smooth noise, brighter for each further class."""
    for shard in numbers:
        for number in shard:
            coarse = np.random.default_rng(number).integers(0, 150, (8, 8)) + 50 * (number % 3)
            pixels = np.kron(coarse, np.ones((-(-size // 8), -(-size // 8))))[:size, :size].astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
            yield {"image": {"bytes": encoded.getvalue(), "path": f"{number}.png"}, "label": number % 3}


class MemorySamples(TrainerCallback):
    """Samples (share of the steps, seconds, MiB) while a trainer runs."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a sample about a hundred times."""
        every = max(1, state.max_steps // 100)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self.samples.append((state.global_step / state.max_steps, time.monotonic(), memory_mib()))


def memory_mib() -> float:
    """What this process and its children have written, pages that they share counted once.

    Pages of files are left out: those of torch's libraries count for less where other programs have them open as well.
    """
    me, kib = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kib += int(line.split()[1])
    return kib / 2**10


def train(arguments: argparse.Namespace) -> tuple[list[tuple[float, float, float]], float]:
    """Run the stream once; also return when training began."""
    shards = [range(first, arguments.slices, arguments.shards) for first in range(arguments.shards)]
    stream = datasets.IterableDataset.from_generator(
        slices,
        features=datasets.Features(
            {"image": datasets.Image(mode="L", decode=False), "label": datasets.ClassLabel(names=LABELS)}
        ),
        gen_kwargs={"numbers": shards, "size": arguments.image_size},
    )
    model = untrained_pair(arguments)
    memory = MemorySamples()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model=model,
            args=DistillationTrainingArguments(
                output_dir=folder,
                max_steps=max(1, arguments.slices // arguments.batch_size),
                per_device_train_batch_size=arguments.batch_size,
                dataloader_num_workers=arguments.workers,
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            augmentation=RandomViews(),
            train_dataset=StreamedViews(stream, arguments.image_size, arguments.batch_size, buffer=arguments.buffer),
            data_collator=collate_views,
            callbacks=[memory],
        )
        start = time.monotonic()
        trainer.train()
    return memory.samples, start


def summarise(samples: list[tuple[float, float, float]], start: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed of the whole, and memory along the way."""
    trained = arguments.slices // arguments.batch_size * arguments.batch_size
    # Around each share, since single samples go up and down by some percent as pages come and go.
    at = {}
    for share in (0.1, 0.5, 1.0):
        near = sorted(samples, key=lambda sample: abs(sample[0] - share))[: max(1, len(samples) // 10)]
        at[share] = statistics.median(mib for _, _, mib in near)
    return {
        "slices": trained,
        "images_per_second": trained / (samples[-1][1] - start),
        "mib": {f"{share:.0%}": mib for share, mib in at.items()},
        "mib_peak": max(mib for _, _, mib in samples),
        "growth": at[1.0] / at[0.1] - 1,
        "samples": [{"share": share, "seconds": when - start, "mib": mib} for share, when, mib in samples],
        **circumstances(arguments, torch.device("cpu")),
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures for people."""
    table = Table(title=f"{result['slices']} slices, {result['device']}")
    for heading in ("images / s", "MiB at 10 %", "at 50 %", "at 100 %", "peak", "growth 10 % to 100 %"):
        table.add_column(heading, justify="right")
    mib = [f"{value:.0f}" for value in (*result["mib"].values(), result["mib_peak"])]
    table.add_row(f"{result['images_per_second']:.0f}", *mib, f"{result['growth']:+.1%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
