"""SIGTERM in the midst of training: saved after the step, and the resumed run is the undisturbed one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_kdmri import DistillationModel, StudentForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.training.reliability.checkpoints import checkpoints_in, damage_of
from hf_kdmri.training.reliability.stopping import Stopped, watch_for_sigterm
from tests.tiny import tiny_model, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
CLOCK = ("seconds", "runtime", "per_second")


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    watch_for_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


class TermAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as a launcher does that got it, too


def trainer_in(folder: Path, **options):
    """Random views, stochastic depth, dropout: whatever draws numbers; 4 steps an epoch."""
    model = tiny_model()
    student = StudentForImageClassification.from_timm(
        "test_vit", labels=model.student.labels, image_size=32, drop_path_rate=0.3, drop_rate=0.2
    )
    student.load_state_dict(model.student.state_dict())
    return tiny_trainer(
        folder,
        model=DistillationModel(student, model.teacher),
        **{"num_train_epochs": 2, "augmentation": RandomViews(), **options},
    )


def rows(trainer) -> list[dict]:
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in trainer.state.log_history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    trainer = trainer_in(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    return trainer


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (4, 0), (7, 1), (8, 0)])
def test_the_resumed_run_is_the_undisturbed_one(tmp_path: Path, undisturbed, step: int, workers: int):
    """In the first epoch; at the end of it, whose log and validation come first; in the second; at the very end."""
    with pytest.raises(Stopped):
        trainer_in(tmp_path, callbacks=[TermAt(step)], dataloader_num_workers=workers).train()
    last = checkpoints_in(tmp_path)[-1]
    assert last.name == f"checkpoint-{step}" and damage_of(last) is None
    watch_for_sigterm()
    resumed = trainer_in(tmp_path, dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=True)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert rows(resumed) == rows(undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_data_workers_change_no_digit(tmp_path: Path, undisturbed, workers: int):
    trainer = trainer_in(tmp_path, dataloader_num_workers=workers)
    trainer.train()
    assert rows(trainer) == rows(undisturbed)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_elsewhere_it_stops_at_once_and_is_no_exception_to_be_handled():
    with pytest.raises(Stopped):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)  # the handler runs before the next line
        except Exception:
            pytest.fail("a handler of errors took it")


def test_a_forked_worker_ends_as_others_do():
    child = os.fork()
    if not child:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
