"""What the benchmarks of training share: a time, its spread, and under what it was taken."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one run, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(figure: dict[str, float], digits: int = 2) -> str:
    """Of `spread`, for people: the median and, in brackets, the extremes."""
    median, lowest, highest = (f"{figure[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({lowest}–{highest})"


def circumstances(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Settings, device and versions, which every figure needs beside it."""
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "timm", "transformers")},
    }
