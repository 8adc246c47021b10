#!/usr/bin/env python
"""What distillation costs: a training step of the student alone, the teacher's forward alone, and both together.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --peers --repeats 5 --json peers.json

The three are timed in turn, round after round, on one batch of random views, so that a machine whose speed drifts
changes all of them alike. The figure that counts is the ratio distillation / (student + teacher), taken round by round:
what the losses and the shared view cost on top of the two networks. Student and teacher are timed in float32 and in
bfloat16, and it is said how far the teacher's answers move, so that `--bf16` and `--teacher_dtype` of a training can be
chosen: which one is faster differs from network to network and from machine to machine. So is the copy of the teacher
that a training asks, with its batch normalisation folded, and that copy compiled.

With `--peers` the same pair is trained by timm.task, by torchdistill and by the recipe of the transformers guide as
well, as they document it, with our precision and layout, and with our way to keep memory too, after it was checked
that all compute the same loss.

benchmarks/README.md holds the tables of one run.
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
from against_peers import run_against_peers
from contenders import (
    GEOMETRY,
    ROUGH,
    TOLERANCE,
    Contender,
    Pair,
    faster_teacher,
    has_compiler,
    is_rounded,
    off_by,
    ours,
    student_step,
    teacher_forward,
)
from rich.console import Console
from rich.table import Table
from timing import above_zero, check_device, circumstances, seconds, shown, spread, timm_name

from hf_kdmri.training.memory import keep_memory

DTYPES = ("float32", "bfloat16")
PLAIN = "plain layout"  # channels first; everything else is channels-last
FASTER = ("folded teacher forward", "compiled teacher forward")


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    result = run_against_peers(arguments) if arguments.peers else run_alone(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_alone(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and print the steps; the figures, ready for JSON."""
    if arguments.device == "cpu":
        keep_memory()  # as a training does
    device = torch.device(arguments.device)
    steps = build_steps(arguments)
    for step in steps.values():  # allocator, kernel choice
        step()
        step()
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        rounds.append({name: seconds(step, device) for name, step in steps.items()})
    result = summarise(rounds, arguments, device)
    print_table(result)
    return result


def parse_arguments() -> argparse.Namespace:
    """Options, with the pair and sizes of configs/figshare.yaml as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", type=timm_name, default="tf_efficientnet_lite0", help="timm name (default: %(default)s)"
    )
    parser.add_argument(
        "--student", type=timm_name, default="mobilenetv4_conv_small", help="timm name (default: %(default)s)"
    )
    parser.add_argument("--image_size", type=above_zero, default=192, help="of both, pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=above_zero, default=32, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=above_zero, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=above_zero, default=os.cpu_count(), help="of torch on the CPU (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="student under bfloat16 autocast as well")
    parser.add_argument(
        "--teacher_dtype", choices=["float32", "bfloat16"], default="bfloat16", help="(default: %(default)s)"
    )
    parser.add_argument("--peers", action="store_true", help="also what other libraries take for the step")
    parser.add_argument("--peers_path", metavar="FOLDER", help="where torchdistill is, if not in this Python")
    parser.add_argument(
        "--no_memory",
        action="store_true",
        help="with --peers: leave peak memory out, which takes a process of its own for each",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    check_device(parser, arguments.device)
    return arguments


def build_steps(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The things timed; each name's function does one whole step."""
    steps: dict[str, Callable[[], Any]] = {}
    for dtype in DTYPES:
        pair = pair_in(arguments, student=dtype, teacher=dtype)
        steps[f"student step, {dtype}"] = student_step(pair).step
        steps[f"teacher forward, {dtype}"] = teacher_forward(pair).step
        steps[f"student step, {dtype}, {PLAIN}"] = student_step(pair, channels_last=False).step
        steps[f"teacher forward, {dtype}, {PLAIN}"] = teacher_forward(pair, channels_last=False).step
        for compiled in (False, True)[: 1 + has_compiler(pair.device)]:
            faster = faster_teacher(pair, compiled=compiled)
            steps[f"{FASTER[compiled]}, {dtype}"] = faster.step
    pair = Pair(arguments)
    distillation = ours(pair, GEOMETRY)
    refuse_other_loss(distillation, pair, arguments)
    steps["distillation step"] = distillation.step
    return steps


def refuse_other_loss(contender: Contender, pair: Pair, arguments: argparse.Namespace) -> None:
    """Compare the loss of what will be timed with the reference's, before it is.

    Raises:
        SystemExit: it is further off than rounding explains.
    """
    assert contender.loss is not None
    loss = contender.loss().item()
    expected, difference = off_by(loss, contender.weights, pair.reference())
    if difference > (ROUGH if is_rounded(arguments) else TOLERANCE):
        raise SystemExit(f"the distillation's loss is {loss:.6f}, the reference's {expected:.6f}: nothing was timed")


def pair_in(arguments: argparse.Namespace, *, student: str, teacher: str) -> Pair:
    """The pair in other precisions than those asked for."""
    return Pair(argparse.Namespace(**{**vars(arguments), "bf16": student == "bfloat16", "teacher_dtype": teacher}))


@torch.no_grad()
def how_far_bfloat16_moves_the_teacher(arguments: argparse.Namespace) -> float:
    """Largest difference of a logit between float32 and bfloat16, in standard deviations of the logits."""
    pair = Pair(arguments)
    teacher = pair.teacher()
    pixels = pair.pixels(teacher)
    exact = teacher(pixels).logits
    with torch.autocast(pair.device.type, torch.bfloat16):
        rounded = teacher(pixels).logits.float()
    return ((rounded - exact).abs().max() / exact.std()).item()


def summarise(rounds: list[dict[str, float]], arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median, minimum and maximum of every figure, and of the ratio within each round."""
    student, teacher = f"student step, {DTYPES[arguments.bf16]}", f"teacher forward, {arguments.teacher_dtype}"
    ratios = [r["distillation step"] / (r[student] + r[teacher]) for r in rounds]
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
        "bfloat16_over_float32": {
            part: spread([r[f"{part}, bfloat16"] / r[f"{part}, float32"] for r in rounds])
            for part in ("student step", "teacher forward")
        },
        "channels_last_over_plain_layout": {
            name: spread([r[name] / r[f"{name}, {PLAIN}"] for r in rounds])
            for name in rounds[0]
            if f"{name}, {PLAIN}" in rounds[0]
        },
        "faster_teacher_over_teacher": {
            f"{way}, {dtype}": spread([r[f"{way}, {dtype}"] / r[f"teacher forward, {dtype}"] for r in rounds])
            for dtype in DTYPES
            for way in FASTER
            if f"{way}, {dtype}" in rounds[0]
        },
        "teacher_logits_moved_by_bfloat16": how_far_bfloat16_moves_the_teacher(arguments),
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
    for part, times in result["bfloat16_over_float32"].items():
        faster = "bfloat16" if times["median"] < 1 else "float32"
        console.print(f"{part}: bfloat16 takes {shown(times)} times as long as float32, so {faster} is faster here")
    for name, ratio in result["channels_last_over_plain_layout"].items():
        console.print(f"{name}: channels-last takes {shown(ratio)} of the time of the plain layout")
    for way, ratio in result["faster_teacher_over_teacher"].items():
        console.print(f"{way}: {shown(ratio)} of the teacher's time")
    console.print(
        f"in bfloat16 a logit of this (untrained) teacher moves by at most "
        f"{result['teacher_logits_moved_by_bfloat16']:.3f} standard deviations"
    )
    ratio = result["ratio"]
    console.print(
        f"distillation / (student + teacher): {ratio['median']:.3f} (min {ratio['min']:.3f}, max {ratio['max']:.3f}); "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    )


if __name__ == "__main__":
    main()
