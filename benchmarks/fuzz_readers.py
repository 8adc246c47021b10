#!/usr/bin/env python
"""Damaged files through the readers: each must load as valid or be refused with the readers' own errors.

    python benchmarks/fuzz_readers.py --count 6000 --json fuzz_readers.json

`.mat` and zip files go through the readers of the slices; PNG, JPEG, TIFF, DICOM and `.npy` through the one of
`kdmri predict` and `kdmri serve`. Every file is read in a worker process. Another error than `SliceFileError`,
`DataFolderError` or `PictureError`, a crash, more than 2 s of processor time, more than 1 GiB of memory in use, and a
request for more than 4 GiB by Python or numpy count as findings: the file is kept, its name holds kind, seed and
number, and the script exits with 1. Address space that HDF5 reserves and never touches does not count.
`--only KIND:NUMBER` repeats one file.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from fuzzing import MAX_SECONDS, Mutator, add_options, finish, is_finding, mutated, planned
from mutations import mutated_mat, mutated_zip
from picture_mutations import KINDS, mutated_picture
from rich.console import Console
from rich.table import Table

from dataset_script.slice_index import labels_and_pids
from hf_kdmri.data.archives import DataFolderError, find_slices, read_slices
from hf_kdmri.data.mat_file import SliceFileError, read_label_and_pid, read_slice
from hf_kdmri.data.picture_limits import PictureError
from hf_kdmri.data.pictures import decode_picture
from hf_kdmri.data.pixels import window_to_uint8

MUTATORS: dict[str, Mutator] = {
    "mat": mutated_mat,
    "zip": mutated_zip,
    **{kind: partial(mutated_picture, kind) for kind in KINDS},
}
MAX_BYTES = 2**30
MAX_ADDRESS_SPACE = 4 * 2**30  # more than before; a larger request fails at once
HANG_SECONDS = 30.0  # on the wall clock: the machine may be busy


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    kind: str
    number: int
    verdict: str  # "valid", "refused" or what is wrong
    seconds: float = 0.0
    peak_mib: float = 0.0  # above what the process had before

    @property
    def finding(self) -> bool:
        """True if the reader did what it must not."""
        return is_finding(self.verdict)


def main() -> None:
    """Read all files, print a table, write JSON."""
    arguments = parse_arguments()
    outcomes = run_all(planned(arguments), arguments.seed, arguments.num_proc)
    result = summarise(outcomes, arguments)
    print_table(result)
    finish(outcomes, result, lambda kind, number: damaged_file(kind, arguments.seed, number), arguments)


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, list(MUTATORS))
    parser.add_argument("--num_proc", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def damaged_file(kind: str, seed: int, number: int) -> bytes:
    """The file of that kind and number."""
    return mutated(MUTATORS[kind], kind, seed, number)


def run_all(todo: list[tuple[str, int]], seed: int, num_proc: int) -> list[Outcome]:
    """Share the files out to worker processes; one that dies or hangs is replaced."""
    waiting = collections.deque(todo)
    outcomes: list[Outcome] = []
    workers = [Worker(seed) for _ in range(min(num_proc, len(todo)))]
    with datasets.utils.tqdm(total=len(todo), unit=" files") as progress:
        while waiting or any(worker.task for worker in workers):
            for i, worker in enumerate(workers):
                outcome = worker.look()
                if outcome is not None:
                    outcomes.append(outcome)
                    progress.update()
                if worker.lost:
                    workers[i] = worker = Worker(seed)
                if worker.task is None and waiting:
                    worker.give(waiting.popleft())
            multiprocessing.connection.wait([worker.pipe for worker in workers if worker.task], timeout=1)
    for worker in workers:
        worker.stop()
    return outcomes


class Worker:
    """A process that reads files, seen from outside."""

    def __init__(self, seed: int) -> None:
        """Start it."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, seed), daemon=True)
        self._process.start()
        theirs.close()
        self.task: tuple[str, int] | None = None
        self.lost = False
        self._since = 0.0
        self.pipe.recv()  # ready

    def give(self, task: tuple[str, int]) -> None:
        """Have it read a file."""
        self.task, self._since = task, time.monotonic()
        self.pipe.send(task)

    def look(self) -> Outcome | None:
        """The outcome, if there is one: the worker's own, or that it died or hangs."""
        if self.task is None:
            return None
        outcome = None
        try:
            if self.pipe.poll():
                outcome = Outcome(*self.task, *self.pipe.recv())
        except EOFError:
            self._process.join(5)
            outcome = Outcome(*self.task, f"crash: exit code {self._process.exitcode}")
            self.lost = True
        seconds = time.monotonic() - self._since
        if outcome is None and seconds > HANG_SECONDS:
            outcome = Outcome(*self.task, "hang", seconds)
            self.stop()
            self.lost = True
        if outcome is not None:
            self.task = None
        return outcome

    def stop(self) -> None:
        """End it, kindly if it is idle."""
        if self.task is None:
            self.pipe.send(None)
        else:
            self._process.kill()
        self._process.join()


def work(pipe: multiprocessing.connection.Connection, seed: int) -> None:
    """Read files until told to stop. Runs in the worker."""
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")  # of Pillow and pydicom, on nearly every file
    with tempfile.TemporaryDirectory() as folder:
        for kind in MUTATORS:  # warm up: imports, tables
            judged(kind, damaged_file(kind, seed, 0), Path(folder))
        limit_address_space()
        pipe.send("ready")
        while (task := pipe.recv()) is not None:
            kind, number = task
            data = damaged_file(kind, seed, number)
            before = reset_peak_mib()
            start = time.process_time()
            verdict = judged(kind, data, Path(folder))
            seconds, peak = time.process_time() - start, status_mib("VmHWM") - before
            if not is_finding(verdict):
                if seconds > MAX_SECONDS:
                    verdict = "slow"
                if peak * 2**20 > MAX_BYTES:
                    verdict = "memory"
            pipe.send((verdict, seconds, peak))


def judged(kind: str, data: bytes, folder: Path) -> str:
    """Read one file in all the ways the builder does, and say how it went."""
    verdict = "valid"
    for read in {"mat": (read_mat, read_mat_index), "zip": (read_zip, read_zip_index)}.get(kind, (read_picture,)):
        try:
            read(data, folder)
        except (SliceFileError, DataFolderError, PictureError) as error:
            verdict = "refused"
            if ran_out_of_memory(error):
                return f"memory: {error}"
        except Exception as error:  # every other one is what is looked for
            return f"{read.__name__}: {type(error).__name__}: {error}"
    return verdict


def read_mat(data: bytes, _: Path) -> None:
    """The whole slice."""
    window_to_uint8(read_slice(data, "7.mat").image)


def read_mat_index(data: bytes, _: Path) -> None:
    """What splitting needs."""
    read_label_and_pid(data, "7.mat")


def read_picture(data: bytes, _: Path) -> None:
    """As `kdmri predict` and `kdmri serve` read it."""
    decode_picture(data, refuse_constant=True)


def read_zip(data: bytes, folder: Path) -> None:
    """Every slice of an archive; a refused one does not spare the next."""
    refused: Exception | None = None
    for entry in find_slices(written(data, folder)):
        try:
            for _, content in read_slices([entry]):
                window_to_uint8(read_slice(content, entry.name).image)
        except (SliceFileError, DataFolderError) as error:
            refused = error
    if refused is not None:
        raise refused


def read_zip_index(data: bytes, folder: Path) -> None:
    """The pass for labels and PIDs, cached as the builder does."""
    entries = find_slices(written(data, folder))
    try:
        labels_and_pids(entries, cache_dir=folder / "cache")
    finally:
        for cached in (folder / "cache").glob("*"):
            cached.unlink()


def written(data: bytes, folder: Path) -> Path:
    """The archive on disk."""
    path = folder / "archive.zip"
    path.write_bytes(data)
    return path


def ran_out_of_memory(error: BaseException | None) -> bool:
    """True if the readers' own error was made of a MemoryError."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__
    return error is not None


def limit_address_space() -> None:
    """Bound what the process may take, so that no file can take the machine down."""
    size = int(status_mib("VmSize") * 2**20) + MAX_ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reset_peak_mib() -> float:
    """Start to measure the peak anew (Linux) and return the present size."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


def status_mib(field: str) -> float:
    """A size of this process, from Linux' process table."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this script needs Linux")


def summarise(outcomes: list[Outcome], arguments: argparse.Namespace) -> dict[str, Any]:
    """Counts, and the slowest and largest of each kind."""
    result: dict[str, Any] = {}
    for kind in arguments.kinds:
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        if of_kind:
            result[kind] = {
                "files": len(of_kind),
                "valid": sum(outcome.verdict == "valid" for outcome in of_kind),
                "refused": sum(outcome.verdict == "refused" for outcome in of_kind),
                "findings": [asdict(outcome) for outcome in of_kind if outcome.finding],
                "slowest": asdict(max(of_kind, key=lambda outcome: outcome.seconds)),
                "largest": asdict(max(of_kind, key=lambda outcome: outcome.peak_mib)),
            }
    return {
        "seed": arguments.seed,
        "kinds": result,
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("h5py", "numpy", "isal", "pillow", "pydicom")}
        | {"python": sys.version.split()[0]},
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures for people."""
    table = Table(title=f"damaged files, seed {result['seed']}")
    for heading in ("", "files", "valid", "refused", "findings", "slowest, s", "most memory, MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind, of in result["kinds"].items():
        counts = [str(of[name]) for name in ("files", "valid", "refused")]
        slowest, largest = f"{of['slowest']['seconds']:.3f}", f"{of['largest']['peak_mib']:.1f}"
        table.add_row(kind, *counts, str(len(of["findings"])), slowest, largest)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
