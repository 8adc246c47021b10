#!/usr/bin/env python
"""What the input costs: augmentation by three libraries, workers and prefetching, and its share of a training step.

    python benchmarks/input.py --json input.json

1. **Augmentation** of one batch with parameters of each image's own: ours, the same by kornia's `warp_affine`, the
   same geometry of every view by plain `torch.nn.functional.grid_sample`, and torchvision v2, whose functions take one
   set of parameters, so that it goes image by image, and whose tensors are turned bilinearly at best.
2. **Loading**: batches from memory-mapped views by the trainer's own data loader, for 0, 1 and 2 workers and several
   prefetch factors, while nothing else is done.
3. **Share**: the seconds that a training loop waits for its batch and that the batch is augmented, over the seconds of
   the whole step (fetch, augmentation, teacher, student, optimiser), for each number of workers.

All variants of a part are timed in turn, round after round. Pictures are random; the pair and sizes are those of
configs/figshare.yaml.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from networks import LABELS, untrained_pair
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import circumstances, seconds, shown, spread
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from hf_kdmri import (
    DistillationModel,
    DistillationTrainer,
    DistillationTrainingArguments,
)
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.views import ViewDataset, collate_views, prepare_views
from hf_kdmri.training.memory import keep_memory


def main() -> None:
    """Measure, print tables, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_memory()  # as a training does
    with tempfile.TemporaryDirectory() as folder:
        views = make_views(arguments, Path(folder))
        model = untrained_pair(arguments, teacher_dtype=getattr(torch, arguments.teacher_dtype), channels_last=True)
        loaders = {
            (workers, prefetch): make_loader(views, model, arguments, workers, prefetch, folder)
            for workers in arguments.workers
            for prefetch in (arguments.prefetch if workers else [None])
        }
        with model.faster_teacher():  # as a training asks it
            share = time_share(loaders, model, arguments)
        result = {
            "augmentation": time_augmentation(views, arguments),
            "loading": time_loading(loaders, arguments),
            "share": share,
            **circumstances(arguments, torch.device("cpu")),
        }
    print_tables(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options, with the pair and sizes of configs/figshare.yaml as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="tf_efficientnet_lite0", help="timm name (default: %(default)s)")
    parser.add_argument("--student", default="mobilenetv4_conv_small", help="timm name (default: %(default)s)")
    parser.add_argument(
        "--teacher_dtype", choices=["float32", "bfloat16"], default="bfloat16", help="(default: %(default)s)"
    )
    parser.add_argument("--image_size", type=int, default=192, help="pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=1024, help="of the set (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--prefetch", type=int, nargs="+", default=[2, 4], help="factors (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of part 3, per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def make_views(arguments: argparse.Namespace, folder: Path) -> ViewDataset:
    """Random pictures as a data set on disk, and the views that training reads."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(arguments.images):
            pixels = np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).resize((arguments.image_size,) * 2).save(encoded, "PNG")
            yield {"image": {"bytes": encoded.getvalue(), "path": None}, "label": number % len(LABELS)}

    features = datasets.Features({"image": datasets.Image(mode="L"), "label": datasets.ClassLabel(names=LABELS)})
    datasets.disable_progress_bars()
    split = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(folder))
    return prepare_views(split, arguments.image_size)


def make_loader(
    views: ViewDataset,
    model: DistillationModel,
    arguments: argparse.Namespace,
    workers: int,
    prefetch: int | None,
    folder: str,
) -> torch.utils.data.DataLoader:
    """The training loader as the trainer makes it."""
    options = DistillationTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=arguments.batch_size,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=prefetch,
        dataloader_persistent_workers=workers > 0,
        dataloader_drop_last=True,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(model=model, args=options, train_dataset=views, data_collator=collate_views)
    return trainer.get_train_dataloader()


def time_augmentation(views: ViewDataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Part 1: milliseconds of each library, and its ratio to ours within each round."""
    batch = views.__getitems__(range(arguments.batch_size))
    ours = RandomViews()
    draws = np.stack([np.random.default_rng((0, 0, row)).random(9) for row in range(arguments.batch_size)])

    def by_torchvision() -> torch.Tensor:
        out = []
        for image, draw in zip(batch["pixel_values"], draws.tolist(), strict=True):
            side = image.shape[-1]
            if draw[7] < ours.moved:
                zoom = ours.scale[0] + (ours.scale[1] - ours.scale[0]) * draw[0]
                shift = [round((2 * draw[axis] - 1) * side * ours.translation) for axis in (2, 3)]
                angle = (2 * draw[4] - 1) * ours.rotation
                image = tv.affine(image, angle, shift, zoom, [0.0], interpolation=v2.InterpolationMode.BILINEAR)
            image = tv.horizontal_flip(image) if draw[1] < ours.flip else image
            image = tv.adjust_contrast(image, ours.contrast[0] + (ours.contrast[1] - ours.contrast[0]) * draw[5])
            out.append(tv.adjust_gamma(image, ours.gamma ** (2 * draw[6] - 1)))
        return torch.stack(out)

    def by_grid_sample(mode: str) -> torch.Tensor:
        draw = torch.from_numpy(draws).float().unbind(1)
        images = batch["pixel_values"].float() / 255
        angle = torch.deg2rad((2 * draw[4] - 1) * ours.rotation) * (draw[7] < ours.moved)
        cosine, sine = angle.cos(), angle.sin()
        affine = torch.stack([cosine, -sine, draw[2] * 0, sine, cosine, draw[3] * 0], 1).view(-1, 2, 3)
        grid = F.affine_grid(affine, list(images.shape), align_corners=True)
        return toned(F.grid_sample(images, grid, mode=mode, align_corners=True), draw)

    def by_kornia() -> torch.Tensor:
        rows = torch.from_numpy(np.flatnonzero(draws[:, 7] < ours.moved))
        draw = torch.from_numpy(draws).float().unbind(1)
        images = batch["pixel_values"].float() / 255
        side = images.shape[-1]
        zoom = ours.scale[0] + (ours.scale[1] - ours.scale[0]) * draw[0]
        shift = (2 * torch.stack(draw[2:4], 1) - 1) * side * ours.translation
        zooms = torch.stack([zoom * torch.where(draw[1] < ours.flip, -1, 1), zoom], 1)
        centre = torch.full((len(images), 2), (side - 1) / 2)
        moves = get_affine_matrix2d(shift, centre, zooms, (2 * draw[4] - 1) * ours.rotation)[rows, :2]
        return toned(images.index_copy(0, rows, warp_affine(images[rows], moves, (side, side), mode="bicubic")), draw)

    def toned(images: torch.Tensor, draw: tuple[torch.Tensor, ...]) -> torch.Tensor:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (mean + (0.7 + 0.6 * draw[5].view(-1, 1, 1, 1)) * (images - mean)).clamp(0, 1)
        images = images.pow((ours.gamma ** (2 * draw[6] - 1)).view(-1, 1, 1, 1))
        return (images * 255).round().clamp(0, 255).to(torch.uint8)

    kinds: dict[str, Callable[[], Any]] = {
        "RandomViews (bicubic)": lambda: ours(batch["pixel_values"], batch["index"], seed=0, epoch=0),
        "kornia's warp_affine, bicubic": by_kornia,
        "grid_sample, bicubic": lambda: by_grid_sample("bicubic"),
        "grid_sample, bilinear": lambda: by_grid_sample("bilinear"),
        "torchvision v2, image by image, bilinear": by_torchvision,
    }
    rounds = []
    for number in range(arguments.rounds + 1):
        took = {name: seconds(kind, torch.device("cpu")) for name, kind in kinds.items()}
        rounds += [took] if number else []  # the first one warms up
    first = next(iter(kinds))
    return {
        name: {
            "milliseconds": spread([1e3 * took[name] for took in rounds]),
            "times_ours": spread([took[name] / took[first] for took in rounds]),
        }
        for name in kinds
    }


def time_loading(loaders: dict[tuple[int, int | None], Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Part 2: images per second of a whole pass, workers started before."""
    speeds: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for key, loader in loaders.items():
            start, count = time.perf_counter(), 0
            for batch in loader:
                count += len(batch["labels"])
            if number:
                speeds.setdefault(told(key), []).append(count / (time.perf_counter() - start))
    return {name: spread(values) for name, values in speeds.items()}


def time_share(
    loaders: dict[tuple[int, int | None], Any], model: DistillationModel, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Part 3: shares of fetching and augmenting in whole steps."""
    optimiser = torch.optim.AdamW(model.student.parameters(), lr=1e-4)
    augmentation = RandomViews()
    shares: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.rounds + 1):
        for key, loader in loaders.items():
            fetch = augment = whole = 0.0
            batches = iter(loader)
            next(batches)  # starting an iterator is paid once an epoch
            for _ in range(min(arguments.steps, len(loader) - 1)):
                start = time.perf_counter()
                batch = next(batches)
                fetched = time.perf_counter()
                pixels = augmentation(batch["pixel_values"], batch["index"], seed=0, epoch=0)
                augmented = time.perf_counter()
                loss = model(pixels, labels=batch["labels"])["loss"]
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                end = time.perf_counter()
                fetch, augment, whole = fetch + fetched - start, augment + augmented - fetched, whole + end - start
            if number:
                row = {"fetch": fetch / whole, "augment": augment / whole, "data": (fetch + augment) / whole}
                shares.setdefault(told(key), []).append({**row, "ms_per_step": 1e3 * whole / arguments.steps})
    return {name: {field: spread([row[field] for row in rows]) for field in rows[0]} for name, rows in shares.items()}


def told(key: tuple[int, int | None]) -> str:
    """Name of a loader's settings."""
    workers, prefetch = key
    return f"{workers} workers" + ("" if prefetch is None else f", prefetch {prefetch}")


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people."""
    console = Console(width=110)
    settings = result["settings"]
    console.print(
        f"batch {settings['batch_size']}, {settings['image_size']} px, {settings['rounds']} rounds; {result['device']}"
    )
    table = Table(title="augmentation of a batch")
    for heading in ("", "ms (min–max)", "times ours (min–max)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in result["augmentation"].items():
        ms, ratio = row["milliseconds"], row["times_ours"]
        table.add_row(name, shown(ms, digits=1), shown(ratio, digits=2))
    console.print(table)
    table = Table(title="loading alone, and data as a share of a step")
    for heading in ("", "images / s, median", "fetch, %", "augment, %", "both, % (min–max)", "ms / step"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, share in result["share"].items():
        percent = {field: {key: 100 * value for key, value in share[field].items()} for field in share}
        table.add_row(
            name,
            f"{result['loading'][name]['median']:.0f}",
            f"{percent['fetch']['median']:.2f}",
            f"{percent['augment']['median']:.2f}",
            shown(percent["data"], digits=2),
            f"{share['ms_per_step']['median']:.0f}",
        )
    console.print(table)
    best = min(result["share"], key=lambda name: result["share"][name]["data"]["median"])
    share = 100 * result["share"][best]["data"]["median"]
    console.print(f"{best}: {share:.2f} % of a step is data (goal: under 3 %; a training's default is 0 workers)")


if __name__ == "__main__":
    main()
