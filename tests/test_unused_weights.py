"""Weights of a student that have no part in its loss: refused on several processes, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_kdmri import DistillationModel
from hf_kdmri.training.reliability.guard import UnusedWeightsError
from tests.tiny import tiny_model, tiny_trainer
from tests.two_processes import results_of_two


def with_unused_weights() -> DistillationModel:
    model = tiny_model()
    model.student.spare = torch.nn.Linear(2, 2)
    return model


def one_of_two(rank: int, folder: Path) -> dict[str, object]:
    results: dict[str, object] = {}
    for look in (False, True):
        trainer = tiny_trainer(
            folder / f"run-{look}", with_unused_weights(), max_steps=3, ddp_find_unused_parameters=look
        )
        try:
            results[str(look)] = trainer.train().global_step
        except UnusedWeightsError as error:
            results[str(look)] = str(error)
    return results


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_refuse_them_unless_they_are_looked_for(tmp_path: Path) -> None:
    for results in results_of_two(one_of_two, tmp_path):
        assert "student.spare.weight, student.spare.bias" in results["False"]
        assert "--ddp_find_unused_parameters true" in results["False"]
        assert results["True"] == 3


def test_one_process_does_not_mind(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, with_unused_weights(), max_steps=2)
    assert trainer.train().global_step == 2
