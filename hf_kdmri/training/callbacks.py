"""What a person and `history.jsonl` are told while a stage trains."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from hf_kdmri.data.streams import StreamedViews
from hf_kdmri.distillation.options import MASK, TERMS
from hf_kdmri.training.run_folder import RunFolder

_TERMS = {"loss_ce": "cross-entropy"} | {f"loss_{term}": term for term in (*TERMS, MASK)}


class StageProgress(ProgressCallback):
    """A progress bar, and one line per validation instead of every log as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self._training: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Remember a training log; say it together with the validation that follows."""
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            self._training = dict(logs)
        # A stream has no epochs: transformers calls all steps one.
        steps = None if len_known(kwargs) else (state.global_step, state.max_steps)
        line = epoch_line(self._training, logs, args.num_train_epochs, steps=steps)
        if line:
            self.training_bar.write(line)


class HistoryWriter(TrainerCallback):
    """Keep `history.jsonl` current, so that a run can be watched and an interrupted one has its curves."""

    def __init__(self, stage: str, run: RunFolder) -> None:
        self.stage, self.run = stage, run

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what has been logged so far."""
        if state.is_world_process_zero:
            self.run.write_history(self.stage, state.log_history)


def len_known(kwargs: dict[str, Any]) -> bool:
    """Whether the training set has a length, from what a callback is given."""
    loader = kwargs.get("train_dataloader")
    return loader is None or not isinstance(loader.dataset, StreamedViews)


def epoch_line(
    training: dict[str, float], logs: dict[str, float], epochs: float, *, steps: tuple[int, int] | None = None
) -> str | None:
    """One line about an epoch, or about the steps so far, or None where `logs` is no validation.

    Example:
        >>> validation = {"eval_loss": 0.6, "eval_accuracy": 0.75, "epoch": 2}
        >>> epoch_line({"loss_ce": 0.51, "train_accuracy": 0.8}, validation, epochs=3)
        '  epoch 2/3   train: cross-entropy 0.510, accuracy 80.0 %   validation: cross-entropy 0.600, accuracy 75.0 %'
    """
    if "eval_loss" not in logs:
        return None
    parts = [f"{name} {training[key]:.3f}" for key, name in _TERMS.items() if key in training]
    if "train_accuracy" in training:
        parts.append(f"accuracy {training['train_accuracy']:.1%}".replace("%", " %"))
    validation = [f"cross-entropy {logs['eval_loss']:.3f}"]
    for key, name in (("eval_accuracy", "accuracy"), ("eval_macro_f1", "macro F1")):
        if key in logs:
            validation.append(f"{name} {logs[key]:.1%}".replace("%", " %"))
    train = f"   train: {', '.join(parts)}" if parts else ""
    where = f"epoch {logs.get('epoch', 0):g}/{epochs:g}" if steps is None else f"step {steps[0]}/{steps[1]}"
    return f"  {where}{train}   validation: {', '.join(validation)}"
