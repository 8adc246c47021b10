#!/usr/bin/env python
"""Whether memory and file handles stay flat over an hour: of a server under load, or of any training.

    python benchmarks/long_runs.py serve --minutes 60 --json serving_hour.json
    python train_kd.py --config configs/figshare.yaml … & python benchmarks/long_runs.py watch $! --json training.json

`serve` starts `kdmri serve` with the student that comes with the package and asks it without a pause: pictures of
several kinds and sizes, and every tenth broken, empty or too large, which it must refuse and live on. `watch` looks at
a process that is there, its children counted in, until it ends or the minutes are over. Either takes the resident
memory, the open file handles and the threads twice a minute.

A growth is told as MiB an hour, the slope of a straight line through what was seen after the first tenth of the
time, in which models, buffers and kernels are made.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from serving import server
from timing import circumstances

from hf_kdmri.shipped import shipped_student

_EVERY = 30.0  # seconds
_FEWEST = 20  # samples
_WARM_UP = 0.1  # of the time
_MEBIBYTE = 2**20


def main() -> None:
    """Watch, print, write JSON."""
    arguments = parse_arguments()
    result: dict[str, Any] = {}
    if arguments.what == "serve":
        with server(str(arguments.model or shipped_student()), arguments.batch_size) as (address, _):
            process = _server_process()
            until = time.monotonic() + 60 * arguments.minutes
            with ThreadPoolExecutor(arguments.clients + 1) as threads:
                samples = threads.submit(watch, process, until)
                answers = [threads.submit(ask, address, number, until) for number in range(arguments.clients)]
                result["samples"] = samples.result()
                result["answers"] = dict(sum((answer.result() for answer in answers), Counter()))
    else:
        result["samples"] = watch(psutil.Process(arguments.pid), time.monotonic() + 60 * arguments.minutes)
    result |= {"flat": growth(result["samples"]), **circumstances(arguments, torch.device("cpu"))}
    print_result(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """What to watch, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["serve", "watch"])
    parser.add_argument("pid", nargs="?", type=int, help="of the process to watch")
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)s)")
    parser.add_argument("--model", help="folder of a student to serve (default: the one that comes with the package)")
    parser.add_argument("--clients", type=int, default=4, help="that ask the server at once (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="of the server (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if (arguments.what == "watch") != (arguments.pid is not None):
        parser.error("watch needs the number of a process, and serve none")
    return arguments


def watch(process: psutil.Process, until: float) -> list[dict[str, float]]:
    """Resident memory, handles and threads of a process and its children, twice a minute until it ends."""
    samples: list[dict[str, float]] = []
    begun = time.monotonic()
    every = min(_EVERY, (until - begun) / _FEWEST)
    while time.monotonic() < until:
        try:
            family = [process, *process.children(recursive=True)]
            samples.append(
                {
                    "seconds": round(time.monotonic() - begun, 1),
                    "mebibytes": sum(one.memory_info().rss for one in family) / _MEBIBYTE,
                    "handles": sum(one.num_fds() for one in family),
                    "threads": sum(one.num_threads() for one in family),
                }
            )
        except psutil.NoSuchProcess:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                break
        time.sleep(min(every, max(0.0, until - time.monotonic())))
    return samples


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Memory, handles and threads after the warm-up: at first, at last, at most; and MiB an hour."""
    kept = samples[round(_WARM_UP * len(samples)) :]
    told: dict[str, float] = {"minutes": kept[-1]["seconds"] / 60, "samples": len(kept)}
    for name in ("mebibytes", "handles", "threads"):
        values = [sample[name] for sample in kept]
        told |= {f"{name}, first": values[0], f"{name}, last": values[-1], f"{name}, most": max(values)}
    hours = [sample["seconds"] / 3600 for sample in kept]
    told["mebibytes an hour"] = float(np.polyfit(hours, [sample["mebibytes"] for sample in kept], 1)[0])
    return told


def ask(address: str, number: int, until: float) -> Counter[str]:
    """Send one picture after the other; answers by status."""
    chance, counts = random.Random(number), Counter[str]()
    with httpx2.Client(timeout=120) as session:
        while time.monotonic() < until:
            counts[str(session.post(address, content=picture(chance)).status_code)] += 1
    return counts


def picture(chance: random.Random) -> bytes:
    """A picture of some kind and size; one in ten is none."""
    side = chance.choice([96, 200, 256, 512, 768])
    noise = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (side // 8, side // 8), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side + chance.choice([0, 0, 31])))
    if chance.random() < 0.3:
        image = image.convert("RGB")
    coded = io.BytesIO()
    image.save(coded, chance.choice(["PNG", "JPEG", "WEBP", "BMP"]))
    content = coded.getvalue()
    if chance.random() < 0.1:
        return chance.choice([b"", content[: len(content) // 2], b"GIF89a" + bytes(40), bytes(30 * _MEBIBYTE)])
    return content


def _server_process() -> psutil.Process:
    """The server that this process has just started."""
    return next(child for child in psutil.Process().children() if "serve" in child.cmdline())


def print_result(result: dict[str, Any]) -> None:
    """The figures for people."""
    flat, console = result["flat"], Console(width=110)
    table = Table("", "first", "last", "most", title=f"{flat['minutes']:.0f} minutes, {flat['samples']} samples")
    for name in ("mebibytes", "handles", "threads"):
        table.add_row(name, *(f"{flat[f'{name}, {when}']:.0f}" for when in ("first", "last", "most")))
    console.print(table)
    console.print(f"memory grows by {flat['mebibytes an hour']:+.1f} MiB an hour")
    if "answers" in result:
        console.print(
            "answers: " + ", ".join(f"{status}: {count}" for status, count in sorted(result["answers"].items()))
        )


if __name__ == "__main__":
    main()
