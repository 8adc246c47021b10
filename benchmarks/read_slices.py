#!/usr/bin/env python
"""From the published zips to a set that is ready for training, and batches back from it.

    python benchmarks/read_slices.py --data_dir DIR --json read_slices.json

Preparing, each way in a process of its own, in turn, round after round:

- builder: `FigshareBrainTumor.download_and_prepare`, everything included: labels and PIDs, splits, windowing, masks,
  planes, Arrow files;
- plain loop: unzip, h5py, min-max to 8 bit, Pillow's PNG into a folder per class, as popular conversion scripts do;
- floor: as many processes as the builder; the same HDF5 data sets read by h5py and each image encoded once as the
  builder's PNG, kept nowhere, nothing checked.

Reading back, batches of shuffled training slices at the size of training: the memory-mapped views of `prepare_views`
(whose one-time cost is given) against `datasets`' imagefolder on the plain loop's PNGs, decoded and resized by Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from dataset_script.figshare_brain_tumor import PNG_OPTIONS, FigshareBrainTumor
from hf_kdmri.data.archives import SliceEntry, find_slices, read_slices
from hf_kdmri.data.views import prepare_views

WAYS = ("builder", "plain loop", "floor")


def main() -> None:
    """Measure, print two tables, write JSON."""
    arguments = parse_arguments()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as work:
        rounds = [
            {way: in_new_process(prepare, way, arguments, Path(work) / way) for way in WAYS}
            for _ in range(arguments.repeats)
        ]
        reading = in_new_process(read_back, arguments, Path(work))
    result = summarise(rounds, reading, arguments)
    print_tables(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with the published zips")
    parser.add_argument("--num_proc", type=int, default=2, help="of builder and floor (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="read back at this size (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="read back (default: %(default)s)")
    parser.add_argument("--work_dir", type=Path, help="where 1.5 GB may be written (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def in_new_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run in a fresh interpreter, so that peak memory is this way's own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def prepare(way: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds, and peak memory of the largest process, of one way; what it wrote stays in `folder`."""
    datasets.disable_progress_bars()
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    if way == "builder":
        FigshareBrainTumor(data_dir=arguments.data_dir, cache_dir=str(folder)).download_and_prepare(
            num_proc=arguments.num_proc
        )
    elif way == "plain loop":
        plain_loop(Path(arguments.data_dir), folder)
    else:
        entries = find_slices(arguments.data_dir)
        tasks = [entries[start : start + 100] for start in range(0, len(entries), 100)]
        with ProcessPoolExecutor(arguments.num_proc) as pool:
            list(pool.map(read_and_encode, tasks))
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "peak_mib": peak / 1024}


def plain_loop(data_dir: Path, folder: Path) -> None:
    """What popular scripts do: unzip everything, then one slice after the other."""
    for archive in sorted(data_dir.glob("*.zip")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / "mat")
    for path in (folder / "mat").rglob("*.mat"):
        if not path.stem.isdigit():
            continue
        with h5py.File(path, "r") as file:
            struct = file["cjdata"]
            image = np.array(struct["image"]).T.astype(np.float64)
            label = int(struct["label"][0, 0])
        scaled = (255 * (image - image.min()) / max(np.ptp(image), 1)).astype(np.uint8)
        target = folder / "png" / str(label) / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scaled).save(target)


def read_and_encode(entries: list[SliceEntry]) -> None:
    """The floor's work on some slices."""
    for _, data in read_slices(entries):
        with h5py.File(io.BytesIO(data), "r") as file:
            struct = file["cjdata"]
            for name in ("label", "PID", "tumorBorder", "tumorMask"):
                struct[name][()]
            image = struct["image"][()]
        pixels = (image >> max(0, int(image.max()).bit_length() - 8)).astype(np.uint8).T  # the upper 8 bits
        Image.fromarray(np.ascontiguousarray(pixels)).save(io.BytesIO(), "PNG", **PNG_OPTIONS)


def read_back(arguments: argparse.Namespace, work: Path) -> dict[str, float]:
    """Images per second of the three ways to read shuffled batches."""
    datasets.disable_progress_bars()
    builder = FigshareBrainTumor(data_dir=arguments.data_dir, cache_dir=str(work / "builder"))
    train = builder.as_dataset(split="train")
    start = time.perf_counter()
    views = prepare_views(train, arguments.image_size)
    one_time = time.perf_counter() - start
    folder = datasets.load_dataset(
        "imagefolder", data_dir=str(work / "plain loop" / "png"), split="train", cache_dir=str(work / "imagefolder")
    )

    def decoded(source: datasets.Dataset, rows: np.ndarray) -> np.ndarray:
        size = (arguments.image_size, arguments.image_size)
        images = source[rows.tolist()]["image"]
        return np.stack([np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC)) for image in images])

    def rate(read: Callable[[np.ndarray], Any], total: int, limit: int) -> float:
        order = np.random.default_rng(0).permutation(total)[:limit]
        start = time.perf_counter()
        for first in range(0, len(order), arguments.batch_size):
            read(order[first : first + arguments.batch_size])
        return len(order) / (time.perf_counter() - start)

    rates: dict[str, list[float]] = {"views": [], "builder's PNGs": [], "imagefolder": []}
    for _ in range(arguments.repeats):
        rates["views"].append(rate(lambda rows: views.__getitems__(rows.tolist()), len(views), 2048))
        rates["builder's PNGs"].append(rate(lambda rows: decoded(train, rows), len(train), 512))
        rates["imagefolder"].append(rate(lambda rows: decoded(folder, rows), len(folder), 512))
    return {"views_one_time_seconds": one_time, **{name: statistics.median(of) for name, of in rates.items()}}


def summarise(
    rounds: list[dict[str, dict[str, float]]], reading: dict[str, float], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Medians and spreads, and ratios within each round."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    return {
        "preparing": {
            way: {
                "seconds": spread([r[way]["seconds"] for r in rounds]),
                "peak_mib": max(r[way]["peak_mib"] for r in rounds),
            }
            for way in WAYS
        },
        "plain_loop_over_builder": spread([r["plain loop"]["seconds"] / r["builder"]["seconds"] for r in rounds]),
        "builder_over_floor": spread([r["builder"]["seconds"] / r["floor"]["seconds"] for r in rounds]),
        "reading_images_per_second": reading,
        "settings": {
            key: value for key, value in vars(arguments).items() if key in ("num_proc", "repeats", "image_size")
        },
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("datasets", "h5py", "numpy", "pillow", "isal")},
    }


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people."""
    console = Console(width=110)
    settings = result["settings"]
    table = Table(title=f"zips to ready set, {settings['num_proc']} processes, {settings['repeats']} rounds")
    for heading in ("", "s, median", "s, min–max", "peak MiB of a process"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way, figures in result["preparing"].items():
        s = figures["seconds"]
        table.add_row(way, f"{s['median']:.1f}", f"{s['min']:.1f}–{s['max']:.1f}", f"{figures['peak_mib']:.0f}")
    console.print(table)
    for name, words in (("plain_loop_over_builder", "plain loop / builder"), ("builder_over_floor", "builder / floor")):
        ratio = result[name]
        console.print(f"{words}: {ratio['median']:.2f} (min {ratio['min']:.2f}, max {ratio['max']:.2f})")
    reading = result["reading_images_per_second"]
    table = Table(title=f"batches read back at {settings['image_size']} px")
    table.add_column("")
    table.add_column("images / s", justify="right")
    for name, rate in reading.items():
        if name != "views_one_time_seconds":
            table.add_row(name, f"{rate:.0f}")
    console.print(table)
    console.print(
        f"views / imagefolder: {reading['views'] / reading['imagefolder']:.1f}; views cost "
        f"{reading['views_one_time_seconds']:.1f} s once for the training split in one process; {result['cpus']} CPUs; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    )


if __name__ == "__main__":
    main()
