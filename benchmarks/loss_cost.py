#!/usr/bin/env python
"""What each loss costs: time and memory, on the stages of a Swin-T teacher and a MobileNetV4-small student at 224 px.

    OMP_NUM_THREADS=2 python benchmarks/loss_cost.py --json loss_cost.json

A loss is timed forward and backward, down to the student's logits, stage maps or embeddings and to the weights of its
own module; its memory is the peak of what is allocated meanwhile on top of those, gradients included. Then come the
student's step (forward and backward) and the teacher's forward, and in each round the terms of a method over their sum:
what the method adds. All are timed in turn, round after round, so that a machine whose speed drifts changes all of them
alike.

Memory is counted exactly: on a CPU from every allocation and release that torch's profiler records, on CUDA by
`max_memory_allocated`. benchmarks/README.md holds the table of one run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import circumstances, seconds, spread
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri import distillation as kd
from hf_kdmri.distillation.heads import middle_pair
from hf_kdmri.distillation.kernels import MAX_TRANSPORT_POINTS
from hf_kdmri.distillation.options import FEATURE_LOSSES

LABELS = ["meningioma", "glioma", "pituitary"]
STEP = ("student step", "teacher forward")
METHODS = {
    "default method": kd.LossOptions(),
    "logits and geometry": kd.LossOptions(geometry_weight=1.0),
    "our method": kd.LossOptions(geometry_weight=1.0, sample_weight=1.0, exit_weight=1.0),
}


@dataclass
class Cost:
    """One thing that is timed.

    Attributes:
        run: does it once.
        milliseconds: of each round.
        mebibytes: peak of what it allocates.
    """

    run: Callable[[], Any]
    milliseconds: list[float] = field(default_factory=list)
    mebibytes: float = float("nan")


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    costs = build(arguments, device)
    for cost in costs.values():  # allocator, kernel choice
        cost.run()
        cost.mebibytes = peak_memory(cost.run, device)
    for _ in range(arguments.rounds):
        for cost in costs.values():
            cost.milliseconds.append(1e3 * seconds(cost.run, device))
    result = summarise(costs, arguments, device)
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="swin_tiny_patch4_window7_224", help="timm name (default: %(default)s)")
    parser.add_argument("--student", default="mobilenetv4_conv_small", help="timm name (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="of both, pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--teacher_dtype", choices=["float32", "bfloat16"], default="bfloat16", help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def build(arguments: argparse.Namespace, device: torch.device) -> dict[str, Cost]:
    """Everything that is timed, by name: the losses, the methods' terms, the student's step, the teacher's forward."""
    shared: dict[str, Any] = dict(labels=LABELS, image_size=arguments.image_size)
    student = StudentForImageClassification.from_timm(arguments.student, **shared).to(device).train()
    teacher = TeacherForImageClassification.from_timm(arguments.teacher, **shared).to(device)
    student.to(memory_format=torch.channels_last)
    teacher.requires_grad_(False).to(memory_format=torch.channels_last)
    size = arguments.image_size
    pixels = torch.randn(arguments.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, len(LABELS), (arguments.batch_size,), device=device)
    teacher_dtype = getattr(torch, arguments.teacher_dtype)

    def student_step() -> None:
        logits, _ = student.stage_features(pixels)
        F.cross_entropy(logits, labels).backward()
        student.zero_grad()

    def teacher_forward() -> kd.Features:
        with torch.no_grad(), torch.autocast(device.type, teacher_dtype, enabled=teacher_dtype != torch.float32):
            return kd.Features(*teacher.stage_features(pixels))

    with torch.no_grad():
        of_student = kd.Features(*student.stage_features(pixels))
    of_teacher = teacher_forward()
    losses = build_losses(of_student, of_teacher, labels, student.stage_channels, teacher.stage_channels)
    return {**losses, STEP[0]: Cost(student_step), STEP[1]: Cost(teacher_forward)}


def build_losses(
    student: kd.Features,
    teacher: kd.Features,
    labels: Tensor,
    channels_s: Sequence[int],
    channels_t: Sequence[int],
) -> dict[str, Cost]:
    """Each loss alone, each term that has modules, then each method's terms together, forward and backward."""
    leaves = kd.Features(student.logits.requires_grad_(), tuple(maps.requires_grad_() for maps in student.stages))

    maps_and_logits = [leaves.logits, *leaves.stages]
    embeddings = [kd.fused_embedding(maps).detach() for maps in (student.stages, teacher.stages)]
    embeddings[0].requires_grad_()

    def terms(options: kd.LossOptions) -> Cost:
        heads = kd.DistillationHeads(options, channels_s, channels_t, len(LABELS)).to(labels.device).train()
        heads.to(memory_format=torch.channels_last)  # as in training

        def loss() -> Tensor:
            return torch.stack(list(kd.distillation_terms(options, heads, leaves, teacher, labels).values())).sum()

        return _forward_and_backward(loss, [*maps_and_logits, *heads.parameters()])

    def alone(loss: Callable[[], Tensor]) -> Cost:
        return _forward_and_backward(loss, maps_and_logits)

    logits = (leaves.logits, teacher.logits)
    off = dict(logit_weight=0.0, geometry_weight=0.0)
    costs = {
        "kd_loss": alone(lambda: kd.kd_loss(*logits)),
        "dkd_loss": alone(lambda: kd.dkd_loss(*logits, labels)),
        "dist_loss": alone(lambda: kd.dist_loss(*logits)),
        "ofa_loss": alone(lambda: kd.ofa_loss(*logits, labels)),
    }
    for difference in ("squared", "smooth_l1", "kl", "cka"):
        costs[f"fused_spatial_similarity_loss, {difference}"] = alone(
            lambda chosen=difference: kd.fused_spatial_similarity_loss(  # type: ignore[misc]  # a default binds it
                leaves.stages, teacher.stages, difference=chosen
            )
        )
    costs["spatial_similarity_loss, middle stage"] = alone(
        lambda: kd.spatial_similarity_loss(*middle_pair(leaves.stages, teacher.stages))
    )
    costs["fused_embedding, both sides"] = alone(
        lambda: kd.fused_embedding(leaves.stages).sum() + kd.fused_embedding(teacher.stages).sum()
    )
    of_embeddings: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "rkd_distance_loss": kd.rkd_distance_loss,
        "rkd_angle_loss, 16 corners at once": partial(kd.rkd_angle_loss, anchors_at_once=16),
        "rkd_angle_loss, as many as 32 MB hold": kd.rkd_angle_loss,
        "similarity_preserving_loss": kd.similarity_preserving_loss,
        "cka_loss": kd.cka_loss,
    }
    for name, loss in of_embeddings.items():
        costs[name] = _forward_and_backward(partial(loss, *embeddings), [embeddings[0]])
    few = [rows[:MAX_TRANSPORT_POINTS] for rows in embeddings]
    costs[f"gromov_wasserstein_loss, {len(few[0])} images"] = _forward_and_backward(
        partial(kd.gromov_wasserstein_loss, *few), [embeddings[0]]
    )
    costs["sample: rkd"] = terms(kd.LossOptions(**off, sample_weight=1.0))  # type: ignore[arg-type]
    costs["exit"] = terms(kd.LossOptions(**off, exit_weight=1.0))  # type: ignore[arg-type]
    for feature_loss in FEATURE_LOSSES:
        options = kd.LossOptions(**off, feature_weight=1.0, feature_loss=feature_loss)  # type: ignore[arg-type]
        costs[f"feature: {feature_loss}"] = terms(options)
    return costs | {name: terms(options) for name, options in METHODS.items()}


def _forward_and_backward(loss: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Cost:
    return Cost(lambda: torch.autograd.grad(loss(), inputs, allow_unused=True))


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """Peak of what a run allocates on top of what is there, MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorded: Any = profiler.profiler  # its public tables sum over operators; the order in time is only here
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def summarise(costs: dict[str, Cost], arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median, minimum and maximum of every time, memory, and each method's share of the step within each round."""
    steps = [sum(times) for times in zip(*(costs[name].milliseconds for name in STEP), strict=True)]
    return {
        "figures": {
            name: {"milliseconds": spread(cost.milliseconds), "peak_mebibytes": cost.mebibytes}
            for name, cost in costs.items()
        },
        "added_to_the_step": {
            name: spread([added / step for added, step in zip(costs[name].milliseconds, steps, strict=True)])
            for name in METHODS
        },
        **circumstances(arguments, device),
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures for people."""
    settings = result["settings"]
    console = Console(width=110)
    console.print(
        f"{settings['teacher']} ({settings['teacher_dtype']}) → {settings['student']}, {settings['image_size']} px, "
        f"batch {settings['batch_size']}, {settings['rounds']} rounds; {result['device']}"
    )
    table = Table()
    for heading in ("", "ms (median)", "ms (min–max)", "peak MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figure in result["figures"].items():
        ms = figure["milliseconds"]
        table.add_row(
            name, f"{ms['median']:.1f}", f"{ms['min']:.1f}–{ms['max']:.1f}", f"{figure['peak_mebibytes']:.1f}"
        )
    console.print(table)
    for name, share in result["added_to_the_step"].items():
        console.print(
            f"{name} / (student step + teacher forward): {share['median']:.4f} "
            f"(min {share['min']:.4f}, max {share['max']:.4f})"
        )
    console.print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))


if __name__ == "__main__":
    main()
