"""What the benchmarks of training share: a time, its spread, and under what it was taken."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

import timm
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


def above_zero(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def counted(text: str) -> int:
    """An argument that counts something, of which there may be none."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def timm_name(text: str) -> str:
    """An argument that names an architecture."""
    if not timm.is_model(text):
        near = get_close_matches(text, timm.list_models(), n=3)
        raise argparse.ArgumentTypeError(
            f"timm has no {text!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    return text


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """End with the parser's error where there is no such device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {device}: {str(error).splitlines()[0]}")


def circumstances(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Settings, device and versions, which every figure needs beside it."""
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "timm", "transformers")},
    }
