"""The death of a process that reads batches, however it comes to light."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from torch.utils.data import dataloader


class DataWorkerError(RuntimeError):
    """A process that reads batches died."""


@contextmanager
def data_workers_watched(way_out: Callable[[], str]) -> Iterator[None]:
    """Raise the death of a data worker as what it is.

    Args:
        way_out: what to say of it: what is kept, and what to do.

    Raises:
        DataWorkerError: a data worker died; the message gives the reason and the way out.
    """
    try:
        yield
    except DataWorkerError:
        raise
    except Exception as error:
        reason = _reason_when_all_is_said(error)
        if reason is None:
            raise
        raise DataWorkerError(f"a data worker died: {reason} {way_out()}") from error


def _reason_when_all_is_said(error: BaseException) -> str | None:
    # Where reading failed first, torch's handler of SIGCHLD has yet to raise, and would in the midst of what follows.
    try:
        reason = reason_of_death(error)
        if reason is not None and not reason.startswith("DataLoader worker"):
            time.sleep(1.0)
        return reason
    except RuntimeError as late:
        return reason_of_death(late)


def reason_of_death(error: BaseException) -> str | None:
    """What a loader said of a worker that died, or None where the error is another one.

    torch tells it in three ways. Its handler of SIGCHLD raises wherever the main process is, which may have that error
    made into another one; its loader finds the worker gone; or, where the worker's sockets close a moment before the
    system calls it gone, reading what it sent fails.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        first_line = str(following).partition("\n")[0]
        if isinstance(following, RuntimeError) and first_line.startswith("DataLoader worker"):
            return first_line
        if _came_from_reading(following.__traceback__) and not first_line.startswith("Too many open files"):
            return f"what it sent could not be read ({type(following).__name__}: {first_line})."
        following = following.__cause__ or following.__context__
    return None


def _came_from_reading(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == "_try_get_data" and code.co_filename == dataloader.__file__:
            return True
        traceback = traceback.tb_next
    return False
