"""The faults of kill_anywhere.py, each at a drawn point."""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from starts import Start, children, runs, send

KINDS = {
    "sigkill": "SIGKILL, at any time",
    "event": "SIGKILL, at a file event: opened to write, renamed, deleted, made",
    "saving": "SIGKILL, some milliseconds after a checkpoint was begun",
    "sigterm": "SIGTERM, at any time",
    "disk": "full disk: a small tmpfs, or a limit on the size of a file",
    "worker": "SIGKILL of the data worker",
    "exception": "exception at a file event",
    "rank_exception": "two processes: exception at a file event of the second",
    "rank_sigkill": "two processes: SIGKILL of the second",
    "rank_sigterm": "two processes: SIGTERM to torchrun",
}
TWO_PROCESSES = {"rank_exception", "rank_sigkill", "rank_sigterm"}
_BOUND = 90.0  # seconds in which a group must end after one of it died


@dataclass
class Fault:
    """One fault at one point.

    Args:
        kind: of `KINDS`.
        where: the point, in words.
        delay: seconds from the start, or from the event that is waited for.
        event: number of the file event.
        room: bytes of the disk or of a file.
        save: which begin of a checkpoint is waited for.
    """

    kind: str
    where: str
    delay: float = 0.0
    event: int = 0
    room: int = 0
    save: int = 0
    _mounted: Path | None = field(default=None, repr=False)

    @property
    def processes(self) -> int:
        """Of the run."""
        return 2 if self.kind in TWO_PROCESSES else 1

    @property
    def options(self) -> list[str]:
        """Further options of the command, which are there when it is started again."""
        return ["--dataloader_num_workers", "1"] if self.kind == "worker" else []

    @contextmanager
    def place(self, parent: Path) -> Iterator[Path]:
        """Where the run lies: on a small disk of its own where the fault is a full one and this machine allows it."""
        if self.kind == "disk" and _can_mount() and _mount(parent, f"size={max(self.room, 4096)}"):
            self._mounted = parent
        try:
            yield parent
        finally:
            if self._mounted is not None:
                subprocess.run(["umount", "--lazy", str(parent)], check=True)

    def make_room(self) -> None:
        """End the fault."""
        if self._mounted is not None:
            subprocess.run(["mount", "-o", "remount,size=1g", str(self._mounted)], check=True)

    def judge(self, killed: Start) -> list[str]:
        """What the end should have looked like and did not."""
        code, output, wrong = killed.code, killed.output, []
        if self.kind == "sigterm" and code not in (75, -signal.SIGTERM):  # the latter before there was a handler
            wrong.append(f"exit code {code} after SIGTERM")
        if self.kind in ("sigterm", "disk", "worker") and "Traceback" in output and "the same command" not in output:
            wrong.append(f"a traceback and no way out: {output.strip().splitlines()[-1:]}")
        if self.kind in ("disk", "worker", "exception", "rank_exception") and "the same command" not in output.lower():
            wrong.append(f"no way out is named: {output.strip().splitlines()[-1:]}")
        if killed.after_fault is not None and killed.after_fault > _BOUND:
            wrong.append(f"ended {killed.after_fault:.0f} s after the fault")
        return wrong

    @property
    def log_outside(self) -> bool:
        """Whether the folder of the run is no place for the log: its disk is full."""
        return self.kind == "disk"

    @property
    def file_size(self) -> int:
        """Limit on a file's size, where no small disk could be had."""
        return self.room if self.kind == "disk" and self._mounted is None else 0

    def bring_about(self, child: int, run: Path, began: float) -> float | None:
        """Bring about what comes from outside; returns when."""
        if self.kind in ("sigkill", "sigterm", "rank_sigkill", "rank_sigterm"):
            while time.monotonic() < began + self.delay and runs(child):
                time.sleep(0.002)
            victim = child
            if self.kind == "rank_sigkill":
                found = _wait_for(lambda: children(child)[1:2], child)
                victim = found[0] if found else 0
            return send(victim, signal.SIGTERM if "sigterm" in self.kind else signal.SIGKILL)
        if self.kind == "saving":
            seen = 0
            while seen < self.save and runs(child):
                if any((run / "checkpoints").glob("*/.unfinished/*")):
                    seen += 1
                    while seen < self.save and any((run / "checkpoints").glob("*/.unfinished/*")) and runs(child):
                        time.sleep(0.001)
                time.sleep(0.0005)
            time.sleep(self.delay)
            return send(child, signal.SIGKILL)
        if self.kind == "worker":
            found = _wait_for(lambda: [process for process in children(child) if _is_data_worker(process)], child)
            time.sleep(self.delay)
            return send(found[0] if found else 0, signal.SIGKILL)
        return None


def draw_fault(kind: str, draw: random.Random, undisturbed: Start) -> Fault:
    """Draw the point of a fault from what the undisturbed run took."""
    if kind in ("event", "exception", "rank_exception"):
        events = undisturbed.events_of_second if kind == "rank_exception" else undisturbed.events
        event = draw.randint(1, max(1, events))
        return Fault(kind, f"file event {event} of {events}", event=event)
    if kind == "saving":
        save, delay = draw.randint(1, 6), draw.uniform(0, 0.03)
        return Fault(kind, f"checkpoint {save}, {1000 * delay:.0f} ms after", save=save, delay=delay)
    if kind == "worker":
        delay = draw.uniform(0, 0.3)
        return Fault(kind, f"{1000 * delay:.0f} ms after it began", delay=delay)
    if kind == "disk":
        whole = undisturbed.bytes if _can_mount() else undisturbed.largest
        room = int(draw.uniform(0.02, 0.98) * whole)
        return Fault(kind, f"{room / 2**20:.2f} of {whole / 2**20:.2f} MiB", room=room)
    delay = draw.uniform(0, undisturbed.seconds)
    return Fault(kind, f"after {delay:.2f} of {undisturbed.seconds:.1f} s", delay=delay)


def _wait_for(look: Callable[[], list[int]], child: int) -> list[int]:
    while runs(child):
        if found := look():
            return found
        time.sleep(0.001)
    return []


def _is_data_worker(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip() == "pt_data_worker"
    except OSError:
        return False


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@cache
def _can_mount() -> bool:
    """Whether this user may have a small disk here; tried once."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = _mount(Path(folder), "size=64k")
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return mounted
