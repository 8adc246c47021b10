#!/usr/bin/env python
"""What a training step on a CPU gains where freed memory stays with the process, and how best to have that.

    OMP_NUM_THREADS=1 python benchmarks/cpu_memory.py --json cpu_memory.json

Every variant trains the student by itself in a process of its own, round after round in turn: glibc as it is; told by
`mallopt` to keep what is freed; that, with torch's THP_MEM_ALLOC_ENABLE; `hf_kdmri.training.memory.keep_memory`; and
everything by the environment, as a program that starts itself again could have it. It prints the time of a step, the
processor's time (which a busy machine changes less), page faults of a step, and the most memory. The losses must be
equal to the last bit.

benchmarks/README.md holds the table of one run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "mallopt": {},
    "mallopt, THP_MEM_ALLOC_ENABLE": {"THP_MEM_ALLOC_ENABLE": "1"},
    "keep_memory": {},
    "environment": {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
}


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    if arguments.variant:
        print(json.dumps(train_a_little(arguments)))
        return
    from rich.console import Console
    from rich.table import Table
    from timing import circumstances, spread

    rounds = [{name: in_process(name) for name in ENVIRONMENTS} for _ in range(arguments.repeats)]
    losses = {told["loss"] for one in rounds for told in one.values()}
    if len(losses) != 1:
        raise SystemExit(f"the losses differ: {sorted(losses)}")
    table = Table("", "ms", "ms (min–max)", "processor ms", "faults / step", "peak MiB")
    figures = {}
    for name in ENVIRONMENTS:
        figures[name] = {
            key: spread([one[name][key] for one in rounds]) for key in ("wall", "processor", "faults", "peak")
        }
        wall, processor, faults, peak = figures[name].values()
        table.add_row(
            name, f"{wall['median']:.0f}", f"{wall['min']:.0f}–{wall['max']:.0f}", f"{processor['median']:.0f}",
            f"{faults['median']:.0f}", f"{peak['median']:.0f}",
        )  # fmt: skip
    Console(width=110).print(table)
    import torch

    result = {"figures": figures, "loss": losses.pop(), **circumstances(arguments, torch.device("cpu"))}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options, with the student of configs/figshare.yaml as default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="mobilenetv4_conv_small", help="timm name (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="pixels (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of a process, after two that are not counted")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on the CPU (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--variant", choices=ENVIRONMENTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(name: str) -> dict[str, float]:
    """Run one variant by this very command, in its own environment."""
    decided = {"LD_PRELOAD", "GLIBC_TUNABLES", *ENVIRONMENTS["environment"]}
    environment = {key: value for key, value in os.environ.items() if key not in decided} | ENVIRONMENTS[name]
    command = [sys.executable, *sys.argv, "--variant", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def train_a_little(arguments: argparse.Namespace) -> dict[str, Any]:
    """A few steps of the student alone; medians over the steps, milliseconds and MiB."""
    if arguments.variant.startswith("mallopt"):
        libc = ctypes.CDLL(None)
        assert libc.mallopt(-4, 0) and libc.mallopt(-1, -1) and libc.mallopt(-2, 1 << 28)
    import torch
    from contenders import Pair, student_step

    from hf_kdmri.training.memory import keep_memory

    if arguments.variant == "keep_memory":
        done = keep_memory()
        assert done.startswith("kept"), done
    torch.set_num_threads(arguments.threads)
    told = {"device": "cpu", "bf16": False, "teacher_dtype": "float32", "teacher": arguments.student}
    contender = student_step(Pair(argparse.Namespace(**{**vars(arguments), **told})))
    rows = []
    for _ in range(arguments.steps + 2):
        faults, wall, processor = _faults(), time.perf_counter(), time.process_time()
        contender.step()
        rows.append((time.perf_counter() - wall, time.process_time() - processor, _faults() - faults))
    wall, processor, faults = (statistics.median(column) for column in zip(*rows[2:], strict=True))
    assert contender.loss is not None
    return {
        "wall": 1e3 * wall,
        "processor": 1e3 * processor,
        "faults": faults,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "loss": contender.loss().item(),
    }


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
