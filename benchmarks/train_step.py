#!/usr/bin/env python
"""What distillation costs: a training step of the student alone, the teacher's forward alone, and both together.

    python benchmarks/train_step.py --json train_step.json

The three are timed in turn, round after round, on one batch of random views, so that a machine whose speed drifts
changes all of them alike. The figure that counts is the ratio distillation / (student + teacher), taken round by round:
what the losses and the shared view cost on top of the two networks.

benchmarks/README.md holds the table of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import circumstances, seconds, spread

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.models import prepare_pixels

LABELS = ["meningioma", "glioma", "pituitary"]


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    steps = build_steps(arguments, device)
    for step in steps.values():  # allocator, kernel choice
        step()
        step()
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        rounds.append({name: seconds(step, device) for name, step in steps.items()})
    result = summarise(rounds, arguments, device)
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options, with the pair and sizes of configs/figshare.yaml as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="tf_efficientnet_lite0", help="timm name (default: %(default)s)")
    parser.add_argument("--student", default="mobilenetv4_conv_small", help="timm name (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="of both, pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on the CPU (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="student under bfloat16 autocast as well")
    parser.add_argument(
        "--teacher_dtype", choices=["float32", "bfloat16"], default="bfloat16", help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def build_steps(arguments: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The things timed; each name's function does one whole step."""
    torch.manual_seed(0)
    teacher_dtype = getattr(torch, arguments.teacher_dtype)
    build = dict(labels=LABELS, image_size=arguments.image_size)
    teacher = TeacherForImageClassification.from_timm(arguments.teacher, **build)
    kinds = {
        name: DistillationModel(
            StudentForImageClassification.from_timm(arguments.student, **build),
            teacher if name == "distillation step" else None,
            teacher_dtype=teacher_dtype,
            channels_last=True,
        )
        .to(device)
        .train()
        for name in ("student step", "distillation step")
    }
    shape = (arguments.batch_size, 1, arguments.image_size, arguments.image_size)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, len(LABELS), (arguments.batch_size,), device=device)
    index = torch.arange(arguments.batch_size)
    steps: dict[str, Callable[[], Any]] = {}

    def train_step(model: DistillationModel) -> Callable[[], None]:
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
                loss = model(views, labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    def teacher_forward() -> None:
        pixels = prepare_pixels(
            views, image_size=teacher.image_size, mean=teacher.pixel_mean, std=teacher.pixel_std
        ).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, teacher_dtype, enabled=teacher_dtype != torch.float32):
            teacher(pixels)

    augmentation = RandomViews()
    steps["student step"] = train_step(kinds["student step"])
    steps["teacher forward"] = teacher_forward
    steps["distillation step"] = train_step(kinds["distillation step"])
    steps["augmentation"] = lambda: augmentation(views, index, seed=0, epoch=0)
    return steps


def summarise(rounds: list[dict[str, float]], arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median, minimum and maximum of every figure, and of the ratio within each round."""
    ratios = [r["distillation step"] / (r["student step"] + r["teacher forward"]) for r in rounds]
    figures = {}
    for name in rounds[0]:
        times = [r[name] for r in rounds]
        figures[name] = {
            "milliseconds": spread([1e3 * value for value in times]),
            "images_per_second": arguments.batch_size / statistics.median(times),
        }
    return {
        "figures": figures,
        "ratio": spread(ratios),
        **circumstances(arguments, device),
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures for people."""
    settings = result["settings"]
    console = Console(width=110)
    table = Table()
    console.print(
        f"{settings['teacher']} ({settings['teacher_dtype']}) → {settings['student']}, "
        f"{settings['image_size']} px, batch {settings['batch_size']}, {settings['repeats']} rounds; {result['device']}"
    )
    for heading in ("", "images / s", "ms (median)", "ms (min–max)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figure in result["figures"].items():
        ms = figure["milliseconds"]
        table.add_row(
            name, f"{figure['images_per_second']:.0f}", f"{ms['median']:.0f}", f"{ms['min']:.0f}–{ms['max']:.0f}"
        )
    console.print(table)
    ratio = result["ratio"]
    console.print(
        f"distillation / (student + teacher): {ratio['median']:.3f} (min {ratio['min']:.3f}, max {ratio['max']:.3f}); "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    )


if __name__ == "__main__":
    main()
