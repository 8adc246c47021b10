"""A trainer that stops where numbers go wrong or a data worker dies, and says what is kept and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_utils import PredictionOutput, TrainOutput

from hf_kdmri.distillation import DistillationModel
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.reliability.checkpoints import WholeCheckpoints, checkpoints_in
from hf_kdmri.training.reliability.data_workers import data_workers_watched
from hf_kdmri.training.reliability.numbers import NotFiniteError, NumberWatch, list_images, terms_with_bad_gradients
from hf_kdmri.training.reliability.stopping import StopCallback, stop_after_step


class UnusedWeightsError(RuntimeError):
    """Weights that train, but that the loss does not depend on."""


class GuardedTrainer(WholeCheckpoints):
    """A trainer of a `DistillationModel` that looks at every step's loss and gradient, and heeds SIGTERM.

    Args:
        *args: as `transformers.Trainer` takes them.
        image_names: what images are called in messages, by their position in the training set; default the position.
        **kwargs: likewise.
    """

    args: DistillationTrainingArguments

    def __init__(self, *args: Any, image_names: Sequence[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StopCallback)
        self.image_names = image_names
        self._watch = NumberWatch(self._names_of, spike_factor=self.args.loss_spike_factor, on_spike=self._tell_spike)
        self._spikes_told = 0
        self._step_images: list[Tensor] = []  # of all micro-batches of the step
        self._last_batch: dict[str, Any] = {}

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, and leave with a message where it cannot go on; the last whole checkpoint is good.

        Raises:
            NotFiniteError: a loss, a gradient or the weights are infinite or no numbers.
            CheckpointError: a checkpoint could not be written.
            DataWorkerError: a process that reads batches died.
            UnusedWeightsError: on several processes, weights that train had no part in the loss.
            Stopped: SIGTERM came, after `watch_for_sigterm` of `stopping`; a checkpoint is written.
        """
        try:
            with stop_after_step(), data_workers_watched(lambda: f"{self._kept()} {self._without_worker()}"):
                output = super().train(*args, **kwargs)
                self._watch.settle()
                self._refuse_bad_weights()
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}. {self._kept()} {self._way_out()}") from error
        except RuntimeError as error:
            if unused := _unused_weights(error, self._distillation_model()):
                raise UnusedWeightsError(
                    f"no part in the loss: {unused}, so processes waited for their gradients in vain. Start again with "
                    "--ddp_find_unused_parameters true, which looks for such weights in every step"
                ) from error
            raise
        return output

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as `transformers.Trainer` does.

        Raises:
            DataWorkerError: a process that reads batches died.
        """
        with data_workers_watched(self._without_worker):  # the models are kept by then
            return super().predict(*args, **kwargs)

    def look_at_loss(
        self, terms: Mapping[str, Tensor], index: Tensor | np.ndarray | None, batch: Mapping[str, Any]
    ) -> None:
        """Look at the terms of one batch before its backward pass.

        Args:
            terms: unweighted, by name.
            index: (B,) positions of the images in the training set, where known.
            batch: what the model got, to find the term whose gradient is not finite.
        """
        index = None if index is None else torch.as_tensor(index)
        self._watch.look(self.state.global_step + 1, self._weighted(terms), index)
        self._last_batch = dict(batch)
        if index is not None:
            self._step_images.append(index)

    def running_sums(self) -> dict[str, Any]:
        """What has been summed up since the last log, and the losses that the next ones are compared with."""
        return {**super().running_sums(), "recent_losses": list(self._watch.recent)}

    def restore_running_sums(self, sums: dict[str, Any]) -> None:
        """Go on with what `running_sums` gave."""
        super().restore_running_sums(sums)
        self._watch.recent.extend(sums["recent_losses"])

    def _distillation_model(self) -> DistillationModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        options = self._distillation_model().loss_options
        progress = self.state.global_step / max(1, self.state.max_steps)
        return {name: options.weight(name, progress) * term for name, term in terms.items()}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Before the optimiser's step, so that on a CPU the weights are still good.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        index = torch.cat(self._step_images) if self._step_images else None
        self._step_images = []
        if self.accelerator.scaler is not None:  # fp16: its scaler meets infinite gradients and leaves such steps out
            return norm
        norm_tensor, step = torch.as_tensor(norm), self.state.global_step + 1
        if norm_tensor.device.type == "cuda":
            self._watch.look_at_gradient(step, norm_tensor, index)
        elif not math.isfinite(value := float(norm_tensor)):
            parameters = [part for part in self._distillation_model().parameters() if part.requires_grad]
            bad = terms_with_bad_gradients(self._weighted_of_last_batch, parameters)
            of = "".join(f" of the term {name}" for name in bad)
            images = self._watch.describe(index)
            if not bad and self.args.world_size > 1:  # the gradient is of all processes' batches
                images = f"images of another process, or {images}"
            raise NotFiniteError(f"the gradient{of} is not finite (its norm is {value}) at step {step}, on {images}")
        return norm

    def _weighted_of_last_batch(self) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            return self._weighted(self._distillation_model()(**self._last_batch).terms)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._watch.settle()
        self._refuse_bad_weights()
        super()._save_checkpoint(model, trial)

    def _refuse_bad_weights(self) -> None:
        state = self._distillation_model().state_dict()
        values = {name: value for name, value in state.items() if value.is_floating_point()}
        good = torch.stack(
            [torch.isfinite(value).all() for value in values.values()]
        ).tolist()  # one wait for the device
        for name, is_finite in zip(values, good, strict=True):
            if not is_finite:
                raise NotFiniteError(f"the weights {name} are not finite after step {self.state.global_step}")

    def _names_of(self, positions: list[int]) -> list[Any]:
        return positions if self.image_names is None else [self.image_names[position] for position in positions]

    def _tell_spike(self, step: int, loss: float, median: float, images: list[Any]) -> None:
        row: dict[str, Any] = {
            "spike": loss,
            "spike_median": median,
            "spike_step": step,
            "spike_images": images,
        }
        self.log(row)
        if not self._spikes_told:
            print(
                f"\n  step {step}: the loss is {loss:.3g}, {loss / median:.0f} times the usual {median:.3g}, on "
                f"{list_images(images)}; this and further spikes are in the history",
                flush=True,
            )
        self._spikes_told += 1

    def _kept(self) -> str:
        kept = checkpoints_in(Path(str(self.args.output_dir)))
        return f"Kept: {kept[-1]}." if kept else f"There is no checkpoint in {self.args.output_dir} yet."

    def _without_worker(self) -> str:
        return (
            "The same command goes on from there; if the machine is short of memory, with a smaller "
            f"--dataloader_num_workers (now {self.args.dataloader_num_workers})"
        )

    def _way_out(self) -> str:
        return (
            "The same command would meet this again: look at those images, or take another --output_dir with a smaller "
            f"--learning_rate (now {self.args.learning_rate:g}) or a smaller λ of that term"
        )


def _unused_weights(error: RuntimeError, model: nn.Module) -> str:
    """The weights that DistributedDataParallel waited for, if this is its error about them, else ""."""
    if "Expected to have finished reduction" not in str(error):
        return ""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    listed = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
    unused = [names[int(place)] for place in listed[1].split() if int(place) < len(names)] if listed else names[:0]
    return ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "") or "some weights"
