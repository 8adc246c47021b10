"""An exponential moving average of the weights, which is what is validated, kept and handed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import distributed, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_kdmri.training.reliability.guard import GuardedTrainer

TRAINING_FILE = "training_weights.safetensors"  # in a checkpoint whose model.safetensors is the average
WARMUP_POWER = 0.75


class AveragedTrainer(GuardedTrainer):
    """A trainer that averages the student's weights over its steps, where `ema_decay` is above 0.

    After step t, counted from 0, average ← d · average + (1 − d) · weights, with d the smaller of `ema_decay` and
    1 − (1 + t)^(−3/4): the first weights are forgotten, and the average looks back over about t^(3/4) steps, until
    `ema_decay` bounds it. Everything in the student's `state_dict` is averaged so, batch normalisation's running
    statistics too, since they belong to those weights; counters are copied. What trains beside the student (projectors,
    exits) is not averaged: it is of no use after training.

    The average is what is validated, what a checkpoint's `model.safetensors` holds and what the model is when training
    ends; training itself goes on with the weights as they are, kept in `training_weights.safetensors` of a checkpoint,
    so nothing else changes by it. On several processes batch normalisation's averages are those of the main one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._average: ModelEmaV3 | None = None  # while training
        if self.args.ema_decay:
            self.add_callback(_AverageAfterStep(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `GuardedTrainer.train` does; the student is the average at the end."""
        if self.args.ema_decay:
            self._average = ModelEmaV3(
                self._distillation_model().student,
                decay=self.args.ema_decay,
                use_warmup=True,
                warmup_power=WARMUP_POWER,
            )
        try:
            return super().train(*args, **kwargs)
        finally:
            self._average = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the average, where there is one."""
        with self._student_is_average():
            return super().evaluation_loop(*args, **kwargs)

    def student_to_keep(self) -> PreTrainedModel:
        """What a save should hold: the average while one is made, else the student."""
        return self._distillation_model().student if self._average is None else self._average.module

    def save_training_weights(self, folder: Path) -> None:
        """Write into a checkpoint what training goes on with, if that is not the student in it."""
        if self._average is not None and self._writing:
            state = self._distillation_model().student.state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, folder / TRAINING_FILE)

    def restore_average(self, folder: Path) -> None:
        """Go on with average and weights of a checkpoint, whose `model.safetensors` the student was loaded from.

        Raises:
            FileNotFoundError: the checkpoint was written without `ema_decay`.
        """
        if self._average is None:
            return
        if not (folder / TRAINING_FILE).is_file():
            raise FileNotFoundError(
                f"no {TRAINING_FILE} in {folder}: it was written without ema_decay; go on without it, or begin anew"
            )
        student = self._distillation_model().student
        self._average.module.load_state_dict(student.state_dict())
        student.load_state_dict(load_file(folder / TRAINING_FILE))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        student = self._distillation_model().student
        if self._average is not None:  # before the best checkpoint is loaded, if one is
            student.load_state_dict(self._average.module.state_dict())
            self._average = None
        self._share_buffers(student)  # all go on with the one that the first process saves
        return super()._finalize_training(*args, **kwargs)

    def _share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics: each has seen other batches."""
        if self.args.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    @contextmanager
    def _student_is_average(self) -> Iterator[None]:
        if self._average is None:
            yield
            return
        student, average = self._distillation_model().student, self._average.module
        self._share_buffers(average)
        _exchange(student, average)
        try:
            yield
        finally:
            _exchange(student, average)


class _AverageAfterStep(TrainerCallback):
    def __init__(self, trainer: AveragedTrainer) -> None:
        self._trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        average = self._trainer._average
        if average is not None:
            # `global_step` is raised after this; timm counts from 1 and copies at its first step.
            average.update(self._trainer._distillation_model().student, step=state.global_step + 1)


@torch.no_grad()
def _exchange(first: nn.Module, second: nn.Module) -> None:
    """Give each of two like modules the other's weights, in place, so that whoever holds the tensors sees it."""
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
