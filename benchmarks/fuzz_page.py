#!/usr/bin/env python
"""Damaged pictures through the page's own readers, in a headless Chromium, and beside them through Python's.

    python benchmarks/fuzz_page.py --model models/kdmri-student --count 5000 --json fuzz_page.json

Each file goes through what the page does before its model: the kind is told from its bytes, it is decoded, windowed,
turned upright, resized and normalised, in a worker of a page as `kdmri space` writes it. It must come out as a picture
or be refused in words for people. Another error, numbers that are not finite, a worker that does not answer within
20 s, more than 2 s and a page that dies count as findings: the file is kept, its name holds kind, seed and number, and
the script exits with 1. Where both read a file, the pixels are compared: the page decodes PNG and DICOM by itself, and
the other kinds by the browser, which mends damaged pictures in its own way. `--only KIND:NUMBER` repeats one file.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import psutil
from fuzzing import MAX_SECONDS, add_options, finish, is_finding, mutated, planned
from page_browser import chromium, open_page, served
from picture_mutations import STRUCTURES, mutated_picture
from rich.console import Console
from rich.table import Table

from hf_kdmri.data.picture_limits import PictureError
from hf_kdmri.data.pictures import decode_picture
from hf_kdmri.hub.space_page import write_space

HANG_MS = 20_000
BATCH = 50  # files between two looks at the memory
# Runs in the page: one worker, replaced if it does not answer.
ASK = """
async ({ files, patience }) => {
  const start = () => new Worker("js/fuzz_page.js", { type: "module" });
  window.fuzzed ??= start();
  const ask = (bytes) =>
    new Promise((resolve) => {
      const late = setTimeout(() => resolve({ verdict: "hang", digest: null, seconds: patience / 1000 }), patience);
      const answer = (result) => (clearTimeout(late), resolve(result));
      window.fuzzed.onmessage = ({ data }) => answer(data);
      window.fuzzed.onerror = (event) => answer({ verdict: `uncaught: ${event.message}`, digest: null, seconds: 0 });
      window.fuzzed.postMessage(bytes);
    });
  const results = [];
  for (const file of files) {
    const result = await ask(Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0)));
    if (result.verdict === "hang" || result.verdict.startsWith("uncaught")) {
      window.fuzzed.terminate();
      window.fuzzed = start();
    }
    results.push(result);
  }
  return results;
}
"""


@dataclass(frozen=True)
class Outcome:
    """What the page made of one file, and what Python did."""

    kind: str
    number: int
    verdict: str  # "valid", "refused" or what is wrong
    seconds: float
    python: bool  # reads it
    equal: bool  # both read it, to the same pixels

    @property
    def finding(self) -> bool:
        """True if the page did what it must not."""
        return is_finding(self.verdict)


def main() -> None:
    """Give the page all files, print a table, write JSON."""
    arguments = parse_arguments()
    with opened(arguments.model) as (page, memory):
        outcomes, peaks = fuzz(page, memory, planned(arguments), arguments.seed)
        browser = page.context.browser.version
    result = {
        "seed": arguments.seed,
        "kinds": {kind: summary(outcomes, kind) | {"most_mib": peaks[kind]} for kind in peaks},
        "browser": f"Chromium {browser}",
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("playwright", "pillow", "pydicom", "numpy")},
    }
    print_table(result)
    finish(outcomes, result, lambda kind, number: damaged_file(kind, arguments.seed, number), arguments)


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="student folder, whose page is opened")
    add_options(parser, list(STRUCTURES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


@contextmanager
def opened(model: Path) -> Iterator[tuple[Any, Memory]]:
    """The page of a model, in Chromium, with the worker that reads files served beside its own scripts."""
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        folder = write_space(Path(work) / "page", model)
        shutil.copy(Path(__file__).with_suffix(".js"), folder / "js")
        with served(folder) as address:
            yield open_page(browser, address), Memory()


class Memory:
    """Most memory that the browser's renderers had in use (Linux)."""

    def __init__(self) -> None:
        """Find them among the children of this process."""
        children = psutil.Process().children(recursive=True)
        self._renderers = [child.pid for child in children if "--type=renderer" in child.cmdline()]

    def restart(self) -> None:
        """Forget what was."""
        for pid in self._renderers:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Since the last start, of all of them."""
        lines = [line for pid in self._renderers for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def fuzz(page: Any, memory: Memory, todo: list[tuple[str, int]], seed: int) -> tuple[list[Outcome], dict[str, float]]:
    """Give all files to the page and to Python; also return the most memory for each kind, in MiB."""
    outcomes: list[Outcome] = []
    peaks: dict[str, float] = {}
    with datasets.utils.tqdm(total=len(todo), unit=" files") as progress:
        for kind in dict.fromkeys(kind for kind, _ in todo):
            numbers = [number for mine, number in todo if mine == kind]
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                files = [damaged_file(kind, seed, number) for number in batch]
                memory.restart()
                answers = page.evaluate(
                    ASK, {"files": [base64.b64encode(file).decode() for file in files], "patience": HANG_MS}
                )
                peaks[kind] = max(peaks.get(kind, 0), memory.peak_mib())
                for number, file, answer in zip(batch, files, answers, strict=True):
                    outcomes.append(judged(kind, number, file, **answer))
                progress.update(len(batch))
    return outcomes, peaks


def damaged_file(kind: str, seed: int, number: int) -> bytes:
    """The file of that kind and number, as in fuzz_readers.py."""
    return mutated(partial(mutated_picture, kind), kind, seed, number)


def judged(kind: str, number: int, file: bytes, verdict: str, digest: str | None, seconds: float) -> Outcome:
    """Put Python's answer beside the page's."""
    if not is_finding(verdict) and seconds > MAX_SECONDS:
        verdict = "slow"
    python = python_digest(file)
    return Outcome(kind, number, verdict, seconds, python is not None, python is not None and python == digest)


def python_digest(file: bytes) -> str | None:
    """SHA-256 of width, height and RGB as `kdmri predict` reads the file, or None if it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow and pydicom, on nearly every file
        try:
            image = decode_picture(file, refuse_constant=True).convert("RGB")
        except PictureError:
            return None
    return hashlib.sha256(struct.pack(">II", *image.size) + image.tobytes()).hexdigest()


def summary(outcomes: list[Outcome], kind: str) -> dict[str, Any]:
    """Counts of one kind."""
    mine = [outcome for outcome in outcomes if outcome.kind == kind]
    read = [outcome for outcome in mine if outcome.verdict == "valid"]
    return {
        "files": len(mine),
        "read": len(read),
        "refused": sum(outcome.verdict == "refused" for outcome in mine),
        "findings": [asdict(outcome) for outcome in mine if outcome.finding],
        "page_only": [outcome.number for outcome in read if not outcome.python],
        "python_only": [outcome.number for outcome in mine if outcome.python and outcome.verdict == "refused"],
        "both": sum(outcome.python for outcome in read),
        "other_pixels": [outcome.number for outcome in read if outcome.python and not outcome.equal],
        "slowest": asdict(max(mine, key=lambda outcome: outcome.seconds)),
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures for people."""
    table = Table(title=f"damaged files in {result['browser']}, seed {result['seed']}")
    headings = ("", "files", "read", "refused", "findings", "page only", "Python only", "both", "other pixels")
    for heading in (*headings, "slowest, s", "most memory, MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind, of in result["kinds"].items():
        counts = [of["files"], of["read"], of["refused"], len(of["findings"]), len(of["page_only"])]
        counts += [len(of["python_only"]), of["both"], len(of["other_pixels"])]
        table.add_row(kind, *map(str, counts), f"{of['slowest']['seconds']:.3f}", f"{of['most_mib']:.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
