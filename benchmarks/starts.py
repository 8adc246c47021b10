"""How kill_anywhere.py starts a run: as a fork of a process that has imported everything, or with torchrun.

The process that trains counts the file events in its folder and, if told so, fails at one of them, by an audit hook of
Python that only that process has; nothing of the product knows of it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
_LONGEST = 600.0  # seconds; a run that takes longer hangs
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Bringer(Protocol):
    """A fault, as far as a start knows it."""

    kind: str
    event: int

    @property
    def log_outside(self) -> bool:
        """Whether the folder of the run is no place for the log."""

    @property
    def file_size(self) -> int:
        """Limit on a file's size in bytes, 0 for none."""

    def bring_about(self, child: int, run: Path, began: float) -> float | None:
        """Do what comes from outside; return when it came."""


def import_train_kd() -> ModuleType:
    """Import the program with all its libraries, so that forks have it."""
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("train_kd")


@dataclass
class Start:
    """What one start of the command came to.

    Args:
        code: exit code; negative for a signal.
        output: standard output and error.
        seconds: until it ended.
        after_fault: seconds from the fault to the end, where the fault was brought from outside.
        events: file events of the first process in the run's folder.
        events_of_second: likewise of the second.
        bytes: of the run's folder at the end.
        largest: bytes of the largest file in its checkpoints.
    """

    code: int
    output: str
    seconds: float
    after_fault: float | None = None
    events: int = 0
    events_of_second: int = 0
    bytes: int = 0
    largest: int = 0


def start(words: list[str], *, fault: Bringer | None = None, run: Path | None = None, processes: int = 1) -> Start:
    """Start train_kd.py with these arguments, bring the fault about, and wait for the end."""
    run = run or Path(words[words.index("--output_dir") + 1])
    log = run.parent / f"{run.name}.log"
    counted = run.parent / f"{run.name}.events"
    if fault is not None and fault.log_outside:
        log = run.parent.with_name(f"{run.parent.name}.log")
        counted = log.with_suffix(".events")
    told = {
        "run": str(run),
        "counted": str(counted),  # with the process's number behind it
        "kind": fault.kind if fault else "",
        "event": fault.event if fault else 0,
        "file_size": fault.file_size if fault else 0,
    }
    began = time.monotonic()
    with open(log, "wb") as stream:
        child = _torchrun(words, told, stream) if processes > 1 else _fork(words, told, stream)
        fault_at = fault.bring_about(child, run, began) if fault is not None else None
        code = _wait(child, began)
    ended = time.monotonic()
    output = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    files = [path for path in run.rglob("*") if path.is_file()]
    return Start(
        code,
        output,
        ended - began,
        after_fault=None if fault_at is None else ended - fault_at,
        events=_read_count(counted, 0),
        events_of_second=_read_count(counted, 1),
        bytes=sum(path.stat().st_size for path in files),
        largest=max((path.stat().st_size for path in files if "checkpoints" in path.parts), default=0),
    )


def _read_count(counted: Path, process: int) -> int:
    path = Path(f"{counted}{process}")
    return int(path.read_text()) if path.is_file() else 0


def inside(told: dict[str, Any], words: list[str]) -> int:
    """Be the process that trains: count or use file events, then run train_kd.py."""
    run, count, rank = Path(told["run"]), 0, os.environ.get("RANK", "0")
    faulty = told["kind"] in ("event", "exception") or (told["kind"] == "rank_exception" and rank == "1")

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = name in _EVENTS
        if not writes or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(arguments[0])
        if path != str(run) and not path.startswith(f"{run}{os.sep}"):  # the harness's own files lie beside it
            return
        count += 1
        if faulty and count == told["event"]:
            if told["kind"] == "event":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this exception is the harness's")

    sys.addaudithook(hook)
    if told["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (told["file_size"], told["file_size"]))
    sys.argv = [str(ROOT / "train_kd.py"), *words]
    program, code = import_train_kd(), 0
    try:
        program.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    if code == 0 and not told["file_size"]:
        Path(f"{told['counted']}{rank}").write_text(str(count))
    return code


def send(process: int, number: int) -> float | None:
    """Send a signal; return when, or None where the process is gone."""
    if not process:
        return None
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return None
    return time.monotonic()


def children(process: int) -> list[int]:
    """The processes that a process started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def runs(child: int) -> bool:
    """Whether a child has not ended; one that has is still to be waited for."""
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _fork(words: list[str], told: dict[str, Any], stream: Any) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        code = inside(told, words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _torchrun(words: list[str], told: dict[str, Any], stream: Any) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).resolve()), json.dumps(told), *words]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        command, stdout=stream, stderr=stream, cwd=ROOT, env=environment, start_new_session=True
    ).pid


def _wait(child: int, began: float) -> int:
    while time.monotonic() < began + _LONGEST:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a run did not end within {_LONGEST:.0f} s")


if __name__ == "__main__":  # of a process that torchrun started
    sys.exit(inside(json.loads(sys.argv[1]), sys.argv[2:]))
