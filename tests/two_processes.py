"""Two processes of a test that compute together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def results_of_two(job: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What `job(rank, folder)` returns on each of two CPU processes, joined by gloo.

    They meet by a file: of two tests at a time on one port, one would fail.

    Args:
        job: a function of a module, since it is sent to new processes.
        folder: for the meeting, the results and whatever the job writes.
    """
    torch.multiprocessing.spawn(_one_of_two, args=(job, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _one_of_two(rank: int, job: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    # accelerate joins by what torchrun would say
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in told.items()})
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=200)
    )
    torch.save(job(rank, folder), folder / f"{rank}.pt")
    distributed.barrier()  # or the first to end closes the other's connections
    distributed.destroy_process_group()
