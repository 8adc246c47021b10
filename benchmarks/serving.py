#!/usr/bin/env python
"""`kdmri serve` under 1, 4 and 16 clients at once, with and without batching, and `kdmri predict` from a cold start.

    python benchmarks/serving.py --model runs/figshare/student --json serving.json

Two servers run side by side, one that puts up to `--batch_size` images through the model at once and one that takes
them one by one. They are asked in turn, round after round, so that a machine whose speed drifts changes both. Each
client is a thread that sends the next picture when it has its answer, over one connection. Clients and server share the
machine's cores, so the throughput is what one machine does in all.

A cold start is the time from starting the process to its end: interpreter, imports, weights, one picture. The file
system's cache is warm from the second repeat on.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from picture_mutations import picture_bytes, slice_pixels
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import circumstances, spread

from hf_kdmri import StudentForImageClassification

KDMRI = (sys.executable, "-m", "hf_kdmri.cli")


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or untrained(arguments, Path(folder) / "student")
        picture = Path(folder) / "slice.png"
        picture.write_bytes(noisy_slice(arguments.picture_size))
        cold = [cold_start(model, picture) for _ in range(arguments.repeats)]
        rounds, ready = measure_servers(arguments, model, picture.read_bytes())
    result = {
        "cold_start": {"kdmri predict": spread(cold), "kdmri serve, until ready": ready},
        "serving": summarise(rounds),
        "picture_bytes": len(noisy_slice(arguments.picture_size)),
        **circumstances(arguments, torch.device("cpu")),
    }
    print_tables(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a student (default: an untrained one)")
    parser.add_argument("--architecture", default="mobilenetv4_conv_small", help="if untrained (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="if untrained, pixels (default: %(default)s)")
    parser.add_argument("--picture_size", type=int, default=512, help="of the PNG sent, pixels (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="(default: 1 4 16)")
    parser.add_argument("--batch_size", type=int, default=8, help="with batching (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def untrained(arguments: argparse.Namespace, folder: Path) -> str:
    """Save a student with random weights, which takes as long as a trained one."""
    student = StudentForImageClassification.from_timm(
        arguments.architecture, labels=["meningioma", "glioma", "pituitary"], image_size=arguments.image_size
    )
    student.save_pretrained(folder)
    return str(folder)


def noisy_slice(size: int) -> bytes:
    """A grey PNG of about the size in bytes that a slice has."""
    noise = np.random.default_rng(0).normal(0, 6, (size, size))
    pixels = np.clip(slice_pixels((size, size)) + noise, 0, 255).astype(np.uint8)
    return picture_bytes(Image.fromarray(pixels), "PNG")


def cold_start(model: str, picture: Path) -> float:
    """Seconds of one `kdmri predict`."""
    start = time.perf_counter()
    subprocess.run([*KDMRI, "predict", str(picture), "--model", model], check=True, capture_output=True)
    return time.perf_counter() - start


@contextmanager
def server(model: str, batch_size: int) -> Iterator[tuple[str, float]]:
    """The address of a server in a process of its own, and the seconds until it was ready."""
    command = [*KDMRI, "serve", "--model", model, "--port", "0", "--batch-size", str(batch_size)]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise RuntimeError(f"the server ended with exit code {process.wait()}")
            ready = time.perf_counter() - start
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or its log would fill the pipe
            yield found[0], ready
        finally:
            process.terminate()
            process.wait(60)


def measure_servers(
    arguments: argparse.Namespace, model: str, picture: bytes
) -> tuple[list[dict[str, dict[str, float]]], dict[str, float]]:
    """Figures of each round by name, and the spread of the seconds until a server was ready."""
    sizes = {"batched": arguments.batch_size, "one by one": 1}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(model, size)) for name, size in sizes.items()}
        for address, _ in servers.values():
            ask(address, picture, max(arguments.clients), 1.0)  # threads, allocator
        rounds = [
            {
                f"{clients} clients, {name}": ask(address, picture, clients, arguments.seconds)
                for clients in arguments.clients
                for name, (address, _) in servers.items()
            }
            for _ in range(arguments.repeats)
        ]
    return rounds, spread([ready for _, ready in servers.values()])


def ask(address: str, picture: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Images per second of all clients together, and percentiles of one request's milliseconds."""
    start = time.perf_counter()

    def client(_: int) -> list[float]:
        took = []
        with httpx2.Client(timeout=60) as session:
            while time.perf_counter() - start < seconds:
                begun = time.perf_counter()
                session.post(address, content=picture).raise_for_status()
                took.append(1000 * (time.perf_counter() - begun))
        return took

    with ThreadPoolExecutor(clients) as threads:
        took = [one for mine in threads.map(client, range(clients)) for one in mine]
    elapsed = time.perf_counter() - start
    p50, p95 = np.percentile(took, (50, 95))
    return {"images_per_second": len(took) / elapsed, "p50_ms": float(p50), "p95_ms": float(p95)}


def summarise(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Spread of every figure over the rounds."""
    return {
        name: {figure: spread([one[name][figure] for one in rounds]) for figure in figures}
        for name, figures in rounds[0].items()
    } | {
        "batched / one by one": {
            clients: statistics.median(
                one[f"{clients} clients, batched"]["images_per_second"]
                / one[f"{clients} clients, one by one"]["images_per_second"]
                for one in rounds
            )
            for clients in sorted({name.split()[0] for name in rounds[0]}, key=int)
        }
    }


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people."""
    table = Table(title=result["device"])
    for heading in ("", "images / s", "p50, ms", "p95, ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    serving = dict(result["serving"])
    ratios = serving.pop("batched / one by one")
    for name, figures in serving.items():
        cells = [figures[key] for key in ("images_per_second", "p50_ms", "p95_ms")]
        table.add_row(name, *(f"{c['median']:.1f} ({c['min']:.1f}-{c['max']:.1f})" for c in cells))
    console = Console(width=110)
    console.print(table)
    console.print("images / s, batched / one by one: " + ", ".join(f"{n} clients {r:.2f}" for n, r in ratios.items()))
    for name, seconds in result["cold_start"].items():
        console.print(f"{name}: {seconds['median']:.1f} s ({seconds['min']:.1f}-{seconds['max']:.1f})")


if __name__ == "__main__":
    main()
