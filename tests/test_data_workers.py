"""A data worker's death is told as such, in each of the ways in which it comes to light."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import resource_sharer

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_kdmri.training.reliability.data_workers import DataWorkerError, data_workers_watched, reason_of_death


class Killed(Dataset[Tensor]):
    """Its second item kills the process that reads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2)


class Closed(Killed):
    """Its third item closes the socket that tensors leave the process by, as the system does before a death is told."""

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            time.sleep(0.5)  # the items before are in the queue
            sharer = resource_sharer._resource_sharer  # type: ignore[attr-defined]
            sharer._listener.close()
            time.sleep(60)
        return torch.zeros(2)


class ClosedThenKilled(Closed):
    """The system tells of the death a moment later."""

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().__getitem__(index)


def read(items: Dataset[Tensor], patience: float = 0.0) -> None:
    for _ in DataLoader(items, batch_size=1, num_workers=1, prefetch_factor=4):
        time.sleep(patience)


def test_a_killed_worker_is_named_with_the_way_out():
    with (
        pytest.raises(DataWorkerError, match=r"^a data worker died: DataLoader worker .* Start again\.$"),
        data_workers_watched(lambda: "Start again."),
    ):
        read(Killed())


def test_a_worker_whose_sockets_close_before_it_is_gone_is_named():
    with (
        pytest.raises(DataWorkerError, match="a data worker died: what it sent could not be read") as caught,
        data_workers_watched(lambda: "Start again."),
    ):
        read(Closed(), patience=1.0)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_death_that_is_told_twice_is_named_once():
    with (
        pytest.raises(DataWorkerError, match="a data worker died") as caught,
        data_workers_watched(lambda: "Start again."),
    ):
        read(ClosedThenKilled(), patience=1.0)
    time.sleep(1.5)  # torch's handler would raise here
    assert caught.value.__cause__ is not None  # whose frames keep the loader


def test_a_death_that_another_error_hides_is_named():
    with pytest.raises(DataWorkerError, match="DataLoader worker"), data_workers_watched(lambda: "Start again."):
        try:
            read(Killed())
        except RuntimeError as error:
            raise ValueError("the batch is bad") from error


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError("no such file"), EOFError()])
def test_another_error_stays_what_it_is(error: Exception):
    assert reason_of_death(error) is None
    with pytest.raises(type(error)) as caught, data_workers_watched(lambda: "Start again."):
        raise error
    assert caught.value is error


def test_an_error_of_the_data_is_no_death_of_a_worker():
    class Bad(Killed):
        def __getitem__(self, index: int) -> Tensor:
            raise OSError("the file is damaged")

    with pytest.raises(OSError, match="the file is damaged"), data_workers_watched(lambda: "Start again."):
        read(Bad())
