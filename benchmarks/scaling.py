#!/usr/bin/env python
"""What 8 to 64 GPUs would give: a calculator from measured step times, and a measurement of two processes beside it.

    python benchmarks/scaling.py --step_ms 60 --batch_size 32 --student mobilenetv4_conv_small --json scaling.json
    python benchmarks/scaling.py --train_step train_step.json --gathered_floats 1120
    python benchmarks/scaling.py --measure

Assumptions of the calculator, each a flag; it predicts, it does not measure:

1. Every GPU does the step that was measured on one, on a batch of its own of the same size (weak scaling).
2. Gradients are averaged by one ring over all GPUs: 2 (N − 1) / N · bytes / link speed, and 2 (N − 1) hops of latency.
   The ring is as fast as its slowest link; between machines that is the network, and a ring enters each machine once.
3. It runs beside the backward pass: `--overlap` of the backward's time can hide it, the rest is added to the step.
4. What terms between images gather (`--gathered_floats` per image, 0 for the default method) goes by a ring all-gather,
   which nothing hides: (N − 1) · batch · bytes / link speed and N − 1 hops.
5. Every step waits for the slowest: a relative spread s of single steps adds s · √(2 ln N).
6. Input keeps up: each process reads its own share. Terms between images compare all images on every GPU; their own
   time is taken as measured at one batch, so with them the prediction is too good where N · batch is large.

`--measure` times, in turn in one run, a step of one process and of two under DistributedDataParallel (gloo, one thread
each), and the all-reduce alone. On a machine whose cores do other work the two are held up by the slower one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from networks import LABELS, untrained_pair
from rich.console import Console
from rich.table import Table
from timing import above_zero, circumstances, counted, shown, spread, timm_name
from torch import distributed

from hf_kdmri import StudentForImageClassification

GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Assumptions:
    """What the prediction rests on.

    Attributes:
        step_ms: of one GPU on one batch, optimiser included.
        batch_size: per GPU.
        gradient_bytes: averaged at each step.
        gathered_bytes: per image, by terms between images.
        backward_share: of the step's time.
        overlap: share of the backward pass that can hide the all-reduce.
        jitter: relative spread of single steps.
        gpus_per_machine: connected by the fast links.
        link_gbytes: GB/s of a link within a machine, in each direction.
        network_gbytes: GB/s between machines.
        link_us: latency of a hop within a machine, microseconds.
        network_us: likewise between machines.
    """

    step_ms: float
    batch_size: int
    gradient_bytes: int
    gathered_bytes: int
    backward_share: float = 0.5
    overlap: float = 0.8
    jitter: float = 0.02
    gpus_per_machine: int = 8
    link_gbytes: float = 200.0
    network_gbytes: float = 25.0
    link_us: float = 5.0
    network_us: float = 20.0


def predict(gpus: int, given: Assumptions) -> dict[str, float]:
    """Milliseconds of a step on a number of GPUs, and what follows from them.

    Example:
        >>> alone = predict(1, Assumptions(step_ms=50, batch_size=32, gradient_bytes=10**7, gathered_bytes=0))
        >>> alone["step_ms"], alone["efficiency"], alone["images_per_second"]
        (50.0, 1.0, 640.0)
    """
    machines = math.ceil(gpus / given.gpus_per_machine)
    bytes_per_ms = 1e6 * (given.link_gbytes if machines == 1 else min(given.link_gbytes, given.network_gbytes))
    between = machines if machines > 1 else 0  # of a ring's N hops
    hop_ms = ((gpus - between) * given.link_us + between * given.network_us) / gpus / 1e3
    rounds = gpus - 1
    reduce_ms = 2 * rounds / gpus * given.gradient_bytes / bytes_per_ms + 2 * rounds * hop_ms
    hidden_ms = given.overlap * given.backward_share * given.step_ms
    exposed_ms = max(0.0, reduce_ms - hidden_ms)
    gather_ms = 0.0
    if given.gathered_bytes:
        gather_ms = rounds * given.batch_size * given.gathered_bytes / bytes_per_ms + rounds * hop_ms
    wait_ms = given.step_ms * given.jitter * math.sqrt(2 * math.log(gpus))
    step_ms = given.step_ms + exposed_ms + gather_ms + wait_ms
    return {
        "gpus": gpus,
        "step_ms": step_ms,
        "all_reduce_ms": reduce_ms,
        "exposed_ms": exposed_ms,
        "gather_ms": gather_ms,
        "wait_ms": wait_ms,
        "efficiency": given.step_ms / step_ms,
        "images_per_second": 1e3 * gpus * given.batch_size / step_ms,
    }


def main() -> None:
    """Predict, or measure and then predict; print tables, write JSON."""
    arguments = parse_arguments()
    measured = measure(arguments) if arguments.measure else None
    given = assumptions(arguments, measured)
    result = {
        "assumptions": asdict(given),
        "predicted": [predict(gpus, given) for gpus in arguments.gpus],
        "measured": measured,
        **circumstances(arguments, torch.device("cpu")),
    }
    print_tables(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--step_ms", type=positive, help="measured step of one GPU, milliseconds")
    source.add_argument("--train_step", type=Path, metavar="JSON", help="take it from benchmarks/train_step.py --json")
    source.add_argument("--measure", action="store_true", help="measure one and two processes on this CPU first")
    parser.add_argument("--figure", default="distillation step", help="of that file (default: %(default)s)")
    parser.add_argument("--batch_size", type=above_zero, help="per GPU (default: that file's, else 32)")
    parser.add_argument(
        "--student", type=timm_name, default="mobilenetv4_conv_small", help="timm name, for its gradient's bytes"
    )
    parser.add_argument("--teacher", type=timm_name, default="tf_efficientnet_lite0", help="timm name, for --measure")
    parser.add_argument(
        "--image_size", type=above_zero, default=96, help="for --measure, pixels (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=above_zero, default=5, help="of --measure (default: %(default)s)")
    parser.add_argument("--gradient_bytes", type=above_zero, help="default: 4 per weight of the student")
    parser.add_argument("--gathered_floats", type=counted, default=0, help="per image, see 4 (default: %(default)s)")
    parser.add_argument("--gpus", type=above_zero, nargs="+", default=list(GPUS), help="default: 1 to 64")
    for field in ("backward_share", "overlap", "jitter", "link_gbytes", "network_gbytes", "link_us", "network_us"):
        parser.add_argument(
            f"--{field}",
            type=positive if "gbytes" in field else at_least_zero,
            default=getattr(Assumptions, field),
            help="default: %(default)s",
        )
    parser.add_argument("--gpus_per_machine", type=above_zero, default=8, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def at_least_zero(text: str) -> float:
    """A number that may be 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := at_least_zero(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def assumptions(arguments: argparse.Namespace, measured: dict[str, Any] | None) -> Assumptions:
    """From flags, a file or the measurement."""
    step_ms, batch_size = arguments.step_ms, arguments.batch_size
    if arguments.train_step is not None:
        try:
            told = json.loads(arguments.train_step.read_text(encoding="utf-8"))
            told["figures"], told["settings"]["batch_size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{arguments.train_step} is no JSON file of benchmarks/train_step.py: {error!r}") from None
        if arguments.figure not in told["figures"]:
            raise SystemExit(f"{arguments.train_step} has no figure {arguments.figure!r}, only {list(told['figures'])}")
        step_ms = told["figures"][arguments.figure]["milliseconds"]["median"]
        batch_size = batch_size or told["settings"]["batch_size"]
    elif measured is not None:
        step_ms = measured["one_process_ms"]["median"]
    if step_ms is None:
        raise SystemExit("give the step that was measured: --step_ms, --train_step FILE, or --measure")
    gradient_bytes = arguments.gradient_bytes
    if gradient_bytes is None:
        student = StudentForImageClassification.from_timm(arguments.student, labels=LABELS)
        gradient_bytes = 4 * sum(weight.numel() for weight in student.parameters())
    same = {name: getattr(arguments, name) for name in Assumptions.__dataclass_fields__ if hasattr(arguments, name)}
    given = {**same, "step_ms": step_ms, "batch_size": batch_size or 32, "gradient_bytes": gradient_bytes}
    return Assumptions(**given, gathered_bytes=4 * arguments.gathered_floats)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one process and two, in turn, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one_of_two, args=(folder, arguments), nprocs=2)
        rounds = json.loads((Path(folder) / "rounds.json").read_text(encoding="utf-8"))
    efficiency = [row["one"] / row["two"] for row in rounds]
    return {
        "one_process_ms": spread([1e3 * row["one"] for row in rounds]),
        "two_processes_ms": spread([1e3 * row["two"] for row in rounds]),
        "all_reduce_ms": spread([1e3 * row["all_reduce"] for row in rounds]),
        "efficiency": spread(efficiency),
        "throughput_ratio": 2 * statistics.median(efficiency),
    }


def _one_of_two(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = untrained_pair(arguments, channels_last=True)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(model.student.parameters(), lr=1e-4)
    batch = arguments.batch_size or 32
    views = torch.randint(0, 256, (batch, 1, arguments.image_size, arguments.image_size), dtype=torch.uint8)
    labels = torch.randint(0, len(LABELS), (batch,))
    gradient = torch.zeros(sum(weight.numel() for weight in model.student.parameters()))

    def step(module: torch.nn.Module) -> None:
        module(views, labels=labels)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()

    def timed(run: Any, *, alone: bool = False) -> float:
        distributed.barrier()
        start = time.perf_counter()
        if rank == 0 or not alone:
            run()
        taken = time.perf_counter() - start
        distributed.barrier()
        return taken

    rounds = []
    for _ in range(arguments.rounds + 2):
        rounds.append(
            {
                "one": timed(lambda: step(model), alone=True),
                "two": timed(lambda: step(wrapped)),
                "all_reduce": timed(lambda: distributed.all_reduce(gradient)),
            }
        )
    if rank == 0:
        (Path(folder) / "rounds.json").write_text(json.dumps(rounds[2:]), encoding="utf-8")
    distributed.destroy_process_group()


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people, with what they rest on."""
    console = Console(width=110)
    measured = result["measured"]
    if measured is not None:
        table = Table(title="measured: one process against two (gloo, one thread each)")
        for heading in ("one, ms", "two, ms", "all-reduce alone, ms", "efficiency", "images / s, times one"):
            table.add_column(heading, justify="right")
        of = [measured[key] for key in ("one_process_ms", "two_processes_ms", "all_reduce_ms")]
        cells = [*(shown(ms, digits=0) for ms in of), shown(measured["efficiency"])]
        table.add_row(*cells, f"{measured['throughput_ratio']:.2f}")
        console.print(table)
    console.print("assumed: " + ", ".join(f"{name} {value:g}" for name, value in result["assumptions"].items()))
    table = Table(title="predicted")
    for heading in ("GPUs", "step, ms", "all-reduce", "of it exposed", "gather", "wait", "efficiency", "images / s"):
        table.add_column(heading, justify="right")
    for row in result["predicted"]:
        ms = [f"{row[key]:.2f}" for key in ("step_ms", "all_reduce_ms", "exposed_ms", "gather_ms", "wait_ms")]
        table.add_row(f"{row['gpus']}", *ms, f"{row['efficiency']:.1%}", f"{row['images_per_second']:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
