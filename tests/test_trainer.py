"""The trainer: accumulation, resume, logs, checkpoints."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hf_kdmri import DistillationModel, DistillationTrainer, StudentForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.distillation import LossOptions
from tests.conftest import ROOT
from tests.tiny import tiny_model, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=atol, rtol=0, msg=name)


def test_training_lowers_the_loss_and_changes_the_student_only(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, num_train_epochs=6, logging_strategy="epoch")
    model = trainer.model
    teacher_before, student_before = weights(model.teacher), weights(model.student)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert_equal_weights(weights(model.teacher), teacher_before)
    assert any(not torch.equal(value, student_before[name]) for name, value in weights(model.student).items())


def test_terms_are_logged_apart_and_add_up(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, logit_weight=0.5, geometry_weight=2.0)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2
    for row in logs:
        total = row["loss_ce"] + 0.5 * row["loss_logit"] + 2.0 * row["loss_geometry"]
        assert row["loss"] == pytest.approx(total, rel=1e-3)
        assert 0 <= row["train_accuracy"] <= 1


def test_evaluation_gathers_logits_only(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (16, 3)


def test_only_training_drops_the_last_batch(tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path, dataloader_drop_last=True, per_device_train_batch_size=7, per_device_eval_batch_size=7
    )
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (16, 3)
    assert len(trainer.get_train_dataloader()) == len(trainer.train_dataset) // 7
    assert trainer.args.dataloader_drop_last


@pytest.mark.parametrize("augmented", [False, True])
def test_accumulation_2_by_8_equals_1_by_16(tmp_path: Path, augmented: bool):
    results = []
    for batch, accumulation in ((16, 1), (8, 2)):
        trainer = tiny_trainer(
            tmp_path / str(batch),
            optim="sgd",  # Adam would divide rounding errors by tiny second moments
            learning_rate=0.05,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
            augmentation=RandomViews() if augmented else None,
        )
        trainer.train()
        results.append((weights(trainer.model), [row["loss"] for row in trainer.state.log_history if "loss" in row]))
    assert_equal_weights(results[0][0], results[1][0], atol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)


class _Stop(Exception):
    pass


class _KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise _Stop


@pytest.mark.parametrize(
    "saving",
    [dict(save_strategy="epoch"), dict(save_strategy="steps", save_steps=3), dict(save_strategy="steps", save_steps=4)],
)
def test_a_run_killed_and_resumed_equals_the_run_left_alone(tmp_path: Path, saving: dict):
    """Killed in the middle of an epoch (4 steps each), with random views and stochastic depth."""

    def trainer_in(folder: str, **options):
        torch.manual_seed(0)
        model = tiny_model()
        student = StudentForImageClassification.from_timm(
            "test_vit", labels=model.student.labels, image_size=32, drop_path_rate=0.3, drop_rate=0.2
        )
        student.load_state_dict(model.student.state_dict())
        return tiny_trainer(
            tmp_path / folder,
            model=DistillationModel(student, model.teacher),
            num_train_epochs=3,
            save_total_limit=None,
            **saving,
            augmentation=RandomViews(),
            **options,
        )

    undisturbed = trainer_in("undisturbed")
    undisturbed.train()

    with pytest.raises(_Stop):
        trainer_in("killed", callbacks=[_KillAt(step=7)]).train()
    resumed = trainer_in("killed")
    resumed.train(resume_from_checkpoint=True)

    assert_equal_weights(weights(resumed.model), weights(undisturbed.model))
    logs = [[row for row in t.state.log_history if "loss" in row] for t in (resumed, undisturbed)]
    if saving == dict(save_strategy="epoch"):  # otherwise an epoch's log averages the steps since the resume
        assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_a_checkpoint_is_a_student_folder_without_the_teacher(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    stored = load_file(checkpoint / "model.safetensors")
    assert set(stored) == set(trainer.model.student.timm_model.state_dict())
    assert not (checkpoint / "distillation_head.safetensors").exists()
    assert not (checkpoint / "training_args.bin").exists()  # a pickle
    loaded = StudentForImageClassification.from_pretrained(checkpoint)
    assert_equal_weights(weights(loaded), weights(trainer.model.student))


def test_whatever_trains_beside_the_student_is_saved_and_restored(tmp_path: Path):
    options = dict(exit_weight=0.5, feature_weight=0.5, feature_loss="hint", num_train_epochs=1)
    trainer = tiny_trainer(tmp_path, **options)
    untrained = weights(trainer.model.heads)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "distillation_head.safetensors")
    assert saved.keys() == {f"heads.{name}" for name in untrained} and {"exit", "feature"} == set(trainer.model.heads)
    assert not any(torch.equal(saved[f"heads.{name}"], value) for name, value in untrained.items() if value.any())
    torch.manual_seed(9)
    again = tiny_trainer(tmp_path, model=tiny_model(seed=9), **options)
    again._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    for part in ("student", "heads"):
        assert_equal_weights(weights(getattr(again.model, part)), weights(getattr(trainer.model, part)))


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path, num_train_epochs=3, load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.5
    )
    trainer.train()
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert_equal_weights(weights(trainer.model.student.timm_model), best)


def test_a_cut_short_checkpoint_is_refused_by_name(tmp_path: Path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in .*checkpoint-2.*remove it"):
        tiny_trainer(tmp_path)._load_from_checkpoint(str(tmp_path / "checkpoint-2"))


def test_every_part_warms_up_linearly_by_its_own_share(tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path,
        distillation_warmup=1.0,
        geometry_weight=2.0,
        geometry_warmup=0.5,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 8
    for step, row in enumerate(rows):
        expected = row["loss_ce"] + step / 8 * row["loss_logit"] + 2 * min(1, step / 4) * row["loss_geometry"]
        assert row["loss"] == pytest.approx(expected, rel=1e-3)


def test_a_plain_student_is_no_distillation_model(tmp_path: Path):
    model = tiny_model()
    with pytest.raises(TypeError, match=r"DistillationModel\(student, teacher\)"):
        DistillationTrainer(model=model.student, args=tiny_trainer(tmp_path).args)


def test_two_places_for_the_numbers_of_the_loss_are_refused(tmp_path: Path):
    base = tiny_model()
    model = DistillationModel(base.student, base.teacher, loss_options=LossOptions(temperature=2.0))
    with pytest.raises(ValueError, match="in one place"):
        tiny_trainer(tmp_path, model=model)
    args = tiny_trainer(tmp_path).args
    agreeing = DistillationModel(base.student, base.teacher, loss_options=args.loss_options())
    DistillationTrainer(model=agreeing, args=dataclasses.replace(args, eval_strategy="no"))


def test_label_smoothing_reaches_the_loss(tmp_path: Path):
    losses = []
    for smoothing in (0.0, 0.3):
        trainer = tiny_trainer(tmp_path, model=tiny_model(with_teacher=False), label_smoothing_factor=smoothing)
        trainer.model.train()
        trainer.model.student.eval()
        batch = trainer.train_dataset.__getitems__(range(8))
        expected = nn.functional.cross_entropy(
            trainer.model(batch["pixel_values"]).logits, batch["labels"], label_smoothing=smoothing
        )
        loss = trainer.model(batch["pixel_values"], labels=batch["labels"]).loss
        torch.testing.assert_close(loss, expected)
        losses.append(loss.item())
    assert losses[0] != losses[1]


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from hf_kdmri.data.augmentation import RandomViews
from tests.tiny import tiny_trainer
folder = Path(sys.argv[1])
trainer = tiny_trainer(folder / "run", per_device_train_batch_size=4, augmentation=RandomViews())
assert dist.get_world_size() == 2
trainer.train()
rank = dist.get_rank()
state = {name: value for name, value in trainer.model.state_dict().items()}
torch.save({"state": state, "logs": trainer.state.log_history}, folder / f"rank{rank}.pt")
predictions = trainer.predict(trainer.eval_dataset).predictions
assert predictions.shape == (16, 3), predictions.shape
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.two_process
@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal_weights(ranks[0]["state"], ranks[1]["state"])

    alone = tiny_trainer(tmp_path / "alone", per_device_train_batch_size=8, augmentation=RandomViews())
    alone.train()
    # Same global batches: the two ranks take alternate halves of what one process takes whole.
    first = [row["loss"] for row in ranks[0]["logs"] if "loss" in row]
    assert first == pytest.approx([row["loss"] for row in alone.state.log_history if "loss" in row], rel=0.05)
