"""Weights of a student that have no part in its loss: refused on several processes, with the way out."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from hf_kdmri import DistillationModel
from hf_kdmri.training.guard import UnusedWeightsError
from tests.tiny import tiny_model, tiny_trainer


def with_unused_weights() -> DistillationModel:
    model = tiny_model()
    model.student.spare = torch.nn.Linear(2, 2)
    return model


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in told.items()})
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    results: dict[str, object] = {}
    for look in (False, True):
        trainer = tiny_trainer(
            Path(folder) / f"run-{look}", with_unused_weights(), max_steps=3, ddp_find_unused_parameters=look
        )
        try:
            results[str(look)] = trainer.train().global_step
        except UnusedWeightsError as error:
            results[str(look)] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    time.sleep(0.5)  # or the first to end closes the other's connections
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_refuse_them_unless_they_are_looked_for(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert "student.spare.weight, student.spare.bias" in results["False"]
        assert "--ddp_find_unused_parameters true" in results["False"]
        assert results["True"] == 3


def test_one_process_does_not_mind(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, with_unused_weights(), max_steps=2)
    assert trainer.train().global_step == 2
