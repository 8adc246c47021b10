"""Processes that hold contenders and do a step when told to, each with an allocator and a memory peak of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contenders import OURS, Pair
from peers import PEERS, find_peers
from timing import seconds

from hf_kdmri.training.memory import keep_memory


class Worker:
    """A process with some contenders.

    Args:
        arguments: of the command line.
        names: of the contenders, built in this order.
        keep: keep freed memory, as a training of this project does on a CPU.
    """

    def __init__(self, arguments: argparse.Namespace, names: Sequence[str], *, keep: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, arguments, list(names), keep), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, name: str = "") -> Any:
        """`time` or `loss` of a contender, the `reference`, or the process's `peak`.

        Raises:
            RuntimeError: it could not be done there; the message says why.
        """
        self._pipe.send((what, name))
        try:
            worked, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process that should {what} {name!r} died; is there memory enough?") from None
        if not worked:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def peak_of(arguments: argparse.Namespace, name: str, *, keep: bool, steps: int = 3) -> dict[str, float]:
    """Most memory of a process that does nothing but a few steps of one contender, in MiB.

    Returns:
        `peak`, and `steps`: what of it came after the contender was built.
    """
    with closing(Worker(arguments, [name], keep=keep)) as worker:
        before = worker.ask("peak")
        for _ in range(steps):
            worker.ask("time", name)
        peak = worker.ask("peak")
    return {"peak": peak, "steps": peak - before}


def _serve(pipe: Connection, arguments: argparse.Namespace, names: list[str], keep: bool) -> None:
    torch.set_num_threads(arguments.threads)
    if keep and arguments.device == "cpu":
        keep_memory()
    find_peers(arguments.peers_path)
    pair = Pair(arguments)
    contenders: dict[str, Any] = {}

    def answer(what: str, name: str) -> Any:
        if what == "peak":
            return _peak(pair.device)
        if what == "reference":
            return pair.reference()
        if what == "loss":
            contender = contenders[name]
            return None if contender.loss is None else (contender.loss().item(), contender.weights)
        return seconds(contenders[name].step, pair.device)

    failed = None
    for name in names:
        try:
            contenders[name] = {**OURS, **PEERS}[name](pair)
        except Exception as error:
            failed = f"{name}: {type(error).__name__}: {error}"
    while True:
        try:
            what, name = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, failed) if failed else (True, answer(what, name)))
        except Exception as error:
            pipe.send((False, f"{name}: {type(error).__name__}: {error}"))


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would hold the parent's as well
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
