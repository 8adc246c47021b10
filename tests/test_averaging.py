"""The moving average of the weights: its values, what is validated and saved, and resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hf_kdmri import DistillationModel, StudentForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.training.averaging import TRAINING_FILE
from tests.conftest import LABELS, ROOT
from tests.tiny import tiny_model, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def with_batch_statistics() -> DistillationModel:
    torch.manual_seed(0)
    student = StudentForImageClassification.from_timm(
        "test_efficientnet", labels=LABELS, image_size=32, drop_path_rate=0.2
    )
    return DistillationModel(student, tiny_model().teacher)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 0, rtol: float = 0
) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=atol, rtol=rtol, msg=name)


class Recorder(TrainerCallback):
    """The weights after every step, and those that were validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append(weights(model.student))


def by_hand(steps: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    average = dict(steps[0])
    for t, after in enumerate(steps[1:], start=1):
        d = min(decay, 1 - (1 + t) ** -0.75)
        for name, value in after.items():
            average[name] = d * average[name] + (1 - d) * value if value.is_floating_point() else value
    return average


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_three_steps_are_those_by_hand_and_training_goes_its_way(tmp_path: Path, decay: float):
    """1 − 2^(−3/4) is 0.41, so that 0.3 bounds the decay and 0.999 does not."""
    options = dict(max_steps=3, save_strategy="no", eval_strategy="no")
    recorder, alone = Recorder(), Recorder()
    trainer = tiny_trainer(
        tmp_path,
        model=with_batch_statistics(),
        ema_decay=decay,
        callbacks=[recorder],
        augmentation=RandomViews(),
        **options,
    )
    trainer.train()
    plain = tiny_trainer(
        tmp_path, model=with_batch_statistics(), callbacks=[alone], augmentation=RandomViews(), **options
    )
    plain.train()
    for one, other in zip(recorder.steps, alone.steps, strict=True):
        assert_equal(one, other)
    assert_equal(weights(plain.model.student), alone.steps[-1])  # off: as the last step left it
    assert_equal(weights(trainer.model.student), by_hand(recorder.steps, decay), atol=1e-6, rtol=1e-5)
    counters = [name for name in recorder.steps[0] if "num_batches" in name]
    assert counters and any("running_var" in name for name in recorder.steps[0])


def test_the_average_is_validated_and_saved(tmp_path: Path):
    recorder = Recorder()
    trainer = tiny_trainer(
        tmp_path, model=with_batch_statistics(), ema_decay=0.9, callbacks=[recorder], learning_rate=0.02
    )
    trainer.train()
    checkpoint = StudentForImageClassification.from_pretrained(tmp_path / "checkpoint-8")
    assert_equal(weights(checkpoint), weights(trainer.model.student))
    assert_equal(weights(checkpoint), by_hand(recorder.steps, 0.9), atol=1e-6, rtol=1e-4)
    assert_equal(load_file(tmp_path / "checkpoint-8" / TRAINING_FILE), recorder.steps[-1])
    told = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    again = tiny_trainer(tmp_path, model=DistillationModel(checkpoint)).evaluate()["eval_loss"]
    assert told[-1] == pytest.approx(again, rel=1e-6)
    as_trained = DistillationModel(with_batch_statistics().student)
    as_trained.student.load_state_dict(recorder.steps[-1])
    assert told[-1] != pytest.approx(tiny_trainer(tmp_path, model=as_trained).evaluate()["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("best", [False, True])
def test_a_resumed_run_equals_the_run_left_alone(tmp_path: Path, best: bool):
    options = dict(
        ema_decay=0.99,
        num_train_epochs=3,
        augmentation=RandomViews(),
        save_total_limit=None,
        load_best_model_at_end=best,
    )
    if best:
        options |= dict(metric_for_best_model="loss", learning_rate=0.05)
    undisturbed = tiny_trainer(tmp_path / "one", model=with_batch_statistics(), **options)
    undisturbed.train()
    first = tiny_trainer(tmp_path / "two", model=with_batch_statistics(), callbacks=[StopAt(7)], **options)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = tiny_trainer(tmp_path / "two", model=with_batch_statistics(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed.model.student), weights(undisturbed.model.student))
    for name in ("model.safetensors", TRAINING_FILE):
        paths = [tmp_path / folder / "checkpoint-12" / name for folder in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    if best:
        kept = Path(str(resumed.state.best_model_checkpoint))
        assert_equal(weights(StudentForImageClassification.from_pretrained(kept)), weights(resumed.model.student))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_checkpoint_without_an_average_is_refused_by_name(tmp_path: Path):
    tiny_trainer(tmp_path, num_train_epochs=1).train()
    with pytest.raises(
        FileNotFoundError, match=r"no training_weights\.safetensors in .*checkpoint-4.*without ema_decay"
    ):
        tiny_trainer(tmp_path, ema_decay=0.9).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(tmp_path: Path, decay: float):
    with pytest.raises(ValueError, match="ema_decay is "):
        tiny_trainer(tmp_path, ema_decay=decay)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from hf_kdmri.data.augmentation import RandomViews
from tests.test_averaging import with_batch_statistics
from tests.tiny import tiny_trainer
folder = Path(sys.argv[1])
trainer = tiny_trainer(folder / "run", model=with_batch_statistics(), ema_decay=0.9, per_device_train_batch_size=4,
    num_train_epochs=1, augmentation=RandomViews())
assert dist.get_world_size() == 2
trainer.train()
rows = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
torch.save({"state": trainer.model.state_dict(), "losses": rows}, folder / f"rank{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.two_process
@pytest.mark.slow
def test_two_processes_have_one_average(tmp_path: Path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29563"]
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal(ranks[0]["state"], ranks[1]["state"])
    saved = StudentForImageClassification.from_pretrained(tmp_path / "run" / "checkpoint-4")
    alone = tiny_trainer(tmp_path, model=DistillationModel(saved)).evaluate()["eval_loss"]
    assert ranks[0]["losses"][-1] == pytest.approx(alone, rel=1e-5)
