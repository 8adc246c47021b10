#!/usr/bin/env python
"""The page in a headless Chromium: how long it loads, and how long a picture takes in it.

    python benchmarks/browser.py --model runs/demo/student --json browser.json

The page is written as by `kdmri space`, served on loopback and opened anew for each load, with an empty cache. Each
picture is then given several times; decoding, preprocessing and model are timed by the page itself, in its worker.
Beside them stand the same pictures in Python with plain transformers on one thread, timed in turn with the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page_browser import PATIENCE, chromium, forget_answer, give, open_page, served
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import shown, spread

from hf_kdmri.hub.space_page import page_folder, write_space
from hf_kdmri.inference import ImageClassifier, read_image

PARTS = ("decode", "preprocess", "model")


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(1)  # as many as the page has
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        page_files = write_space(Path(work) / "page", arguments.model)
        pictures = write_pictures(Path(work))
        with served(page_files) as address:
            loads = [load(browser, address) for _ in range(arguments.loads)]
            seen, explained = classify(browser, address, arguments, pictures)
        result: dict[str, Any] = {
            "load_ms": {part: spread([one[part] for one in loads]) for part in loads[0]},
            "pictures_ms": seen,
            "occlusion_ms": spread(explained),
            "settings": {key: str(value) for key, value in vars(arguments).items() if key != "json"},
            "model": json.loads((page_files / "model.json").read_text())["architecture"],
            "browser": f"Chromium {browser.version}, WebAssembly on one thread",
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "versions": {name: version(name) for name in ("torch", "timm", "transformers", "playwright", "pillow")},
        }
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def load(browser: Any, address: str) -> dict[str, float]:
    """Open the page in a context of its own: milliseconds to ready in all, of fetching, and of starting the model."""
    context = browser.new_context()
    start = time.perf_counter()
    page = open_page(context, address)
    total = 1000 * (time.perf_counter() - start)
    times = page.evaluate("({...document.body.dataset})")
    context.close()
    return {"all": total, "fetch": float(times["fetch"]), "start": float(times["start"])}


def classify(
    browser: Any, address: str, arguments: argparse.Namespace, pictures: list[Path]
) -> tuple[dict[str, Any], list[float]]:
    """Give every picture so often, page and Python in turn; then the overlay, of the first picture."""
    classifier = ImageClassifier(str(arguments.model))
    page = open_page(browser, address)
    seen: dict[str, dict[str, list[float]]] = {path.name: {} for path in pictures}
    for round_number in range(arguments.repeats + 1):
        for path in pictures:
            give(page, path)
            times = page.locator("#result").evaluate("(section) => ({...section.dataset})")
            start = time.perf_counter()
            classifier.probabilities([read_image(path)])
            python = 1000 * (time.perf_counter() - start)
            if round_number == 0:
                continue  # warms both up
            parts = {part: float(times[part]) for part in PARTS}
            for part, value in {**parts, "all": sum(parts.values()), "python": python}.items():
                seen[path.name].setdefault(part, []).append(value)
    explained = []
    for _ in range(arguments.explanations):
        forget_answer(page)
        give(page, pictures[0])
        page.click("#explain-start")
        page.wait_for_selector("#overlay-controls:not([hidden])", timeout=PATIENCE)
        explained.append(float(page.get_attribute("#explain", "data-explain")))
    page.close()
    return {name: {part: spread(values) for part, values in times.items()} for name, times in seen.items()}, explained


def write_pictures(folder: Path) -> list[Path]:
    """One generated slice as the kinds that people have: 8-bit PNG, 16-bit PNG, JPEG of the published size, a photo."""
    slice_ = Image.open(page_folder() / "examples" / "phantom_glioma.png")
    large = slice_.resize((512, 512))
    wide = Image.fromarray(np.asarray(large).astype(np.uint16) * 16)
    photo = slice_.resize((4000, 3000)).convert("RGB")
    named = {"256.png": slice_, "512_16_bits.png": wide, "512.jpg": large, "12_megapixels.jpg": photo}
    for name, picture in named.items():
        picture.save(folder / name)
    return [folder / name for name in named]


def print_table(result: dict[str, Any]) -> None:
    """Print median and extremes of everything."""

    def cell(times: dict[str, float]) -> str:
        return shown(times, digits=1)

    table = Table(title=f"{result['model']}: milliseconds, median (min–max)")
    for column in ("picture", *PARTS, "all", "Python, eager"):
        table.add_column(column, justify="left" if column == "picture" else "right")
    for name, times in result["pictures_ms"].items():
        table.add_row(name, *(cell(times[part]) for part in (*PARTS, "all", "python")))
    console = Console(width=140)
    console.print(table)
    console.print("Loading:", ", ".join(f"{part} {cell(times)}" for part, times in result["load_ms"].items()))
    console.print("Occlusion overlay, 144 pictures:", cell(result["occlusion_ms"]))
    console.print(result["browser"])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="student folder")
    parser.add_argument("--loads", type=int, default=5, help="times the page is opened")
    parser.add_argument("--repeats", type=int, default=20, help="times each picture is given, after one to warm up")
    parser.add_argument("--explanations", type=int, default=3, help="times the overlay is made")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
