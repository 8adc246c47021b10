"""SIGTERM, which a pre-empted machine gets: keep what was trained and leave, with an exit code that says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later
EXIT_INTERRUPTED = 130


class Stopped(BaseException):
    """SIGTERM came; whatever the run needs to go on is on disk. Like `KeyboardInterrupt`, no error to be handled."""


class _Request:
    """Whether SIGTERM came to this process, and whether someone waits for a good moment to act on it."""

    process = 0
    came = False
    postponed = 0


_request = _Request()


def _on_sigterm(number: int, frame: Any) -> None:
    if os.getpid() != _request.process:  # a forked worker, which ends as if nothing had been said here
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    _request.came = True
    if not _request.postponed:
        raise Stopped  # at each one: the first may have come within a `__del__`, where exceptions are lost


def watch_for_sigterm() -> None:
    """From now on SIGTERM raises `Stopped`, at once or, while a trainer trains, after its step and a checkpoint."""
    _request.process, _request.came = os.getpid(), False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)


def ignore_sigterm() -> None:
    """From now on SIGTERM changes nothing: the process is about to leave, with an exit code that should be kept."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def stop_after_step() -> Iterator[None]:
    """Let a trainer look for SIGTERM by itself, by `StopCallback`.

    Raises:
        Stopped: SIGTERM came too late for another step, or what it did to others (data workers get it, too, where it
            is sent to a whole process group) stopped this one.
    """
    _request.postponed += 1
    try:
        yield
    except RuntimeError as error:  # of a dead data worker, of a process group; a full disk is another matter
        if _request.came:
            raise Stopped from error
        raise
    finally:
        _request.postponed -= 1
    if _request.came:
        raise Stopped


class StopCallback(TrainerCallback):
    """Save after the step during which SIGTERM came to any process, and leave; and save no epoch without its logs.

    transformers' own `enable_jit_checkpoint` was not used. It waits for 3 seconds, then saves before the optimiser's
    step or at its begin, where random numbers of the step are drawn already, so that the resumed run differs from the
    undisturbed one; several processes do not agree on the step; and the mark of an unfinished checkpoint is read by no
    one.

    After the last step of an epoch the epoch's log and validation come first, since a run that is resumed from there
    would not make up for them. The same holds for a checkpoint that `save_steps` puts there.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._stop = False
        self._save_due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make a group of processes that talk on the CPU, which an accelerator need not be waited for."""
        self._stop = self._save_due = False
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where a process got SIGTERM; put off what falls on the end of an epoch."""
        self._stop = self._stop or self._came_to_any()
        if float(state.epoch).is_integer() or state.global_step >= state.max_steps:
            self._save_due, control.should_save = control.should_save, False
        elif self._stop:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make up for what was put off."""
        control.should_save = control.should_save or self._stop or self._save_due
        self._save_due = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave, if that was the checkpoint to leave with.

        Raises:
            Stopped: always then.
        """
        if self._stop:
            if state.is_world_process_zero:
                print(f"\nSIGTERM: saved at step {state.global_step}", file=sys.stderr, flush=True)
            raise Stopped

    def _came_to_any(self) -> bool:
        if self._group is None:
            return _request.came
        came = torch.tensor([int(_request.came)])
        distributed.all_reduce(came, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(came.item())
