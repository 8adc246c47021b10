"""A teacher divided among processes says the same, and each process holds its part of it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.distillation import LossOptions
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.sharding import shard_teacher, teacher_bytes
from tests.conftest import LABELS
from tests.tiny import tiny_model, tiny_trainer
from tests.two_processes import results_of_two

TEACHERS = ("test_vit", "test_convnext", "test_resnet", "test_efficientnet")


def model_with(teacher: str) -> DistillationModel:
    torch.manual_seed(0)
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32)
    of_teacher = TeacherForImageClassification.from_timm(teacher, labels=LABELS, image_size=64)
    options = LossOptions(geometry_weight=1.0, geometry_grid=2)  # asks for stage maps as well
    return DistillationModel(student, of_teacher, loss_options=options, channels_last=True).train()


def batch_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    views = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8, generator=generator)
    return views, torch.randint(0, 3, (4,), generator=generator)


def loss_and_gradients(model: torch.nn.Module, student: torch.nn.Module, rank: int) -> list[torch.Tensor]:
    student.zero_grad()
    views, labels = batch_of(rank)
    loss = model(views, labels=labels)["loss"]
    loss.backward()
    results = [loss.detach()]
    for parameter in student.parameters():
        assert parameter.grad is not None
        results.append(parameter.grad.clone())
    return results


def one_of_two(rank: int, folder: Path) -> dict[str, object]:
    results: dict[str, object] = {}
    for teacher in TEACHERS:
        model = model_with(teacher)
        whole = loss_and_gradients(DistributedDataParallel(model), model.student, rank)
        model = model_with(teacher)
        shard_teacher(model, torch.device("cpu"))
        wrapped = DistributedDataParallel(model)
        bytes_before = teacher_bytes(model.teacher)
        steps = [loss_and_gradients(wrapped, model.student, rank) for _ in range(2)]
        results[teacher] = {
            "whole": whole,
            "sharded": steps,
            "bytes": [bytes_before, teacher_bytes(model.teacher)],
            "state": sorted(key for key in model.state_dict() if key.startswith("teacher")),
        }
    trainers = {}
    for sharded in (False, True):
        trainer = tiny_trainer(
            folder / f"run-{sharded}", tiny_model(), shard_teacher=sharded, max_steps=3, geometry_weight=1.0
        )
        trainer.train()
        trainers[sharded] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    results["trainers"] = trainers
    loader = tiny_trainer(folder / "rows").get_train_dataloader()
    results["rows"] = [batch["index"].tolist() for batch in loader]
    return results


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return results_of_two(one_of_two, tmp_path_factory.mktemp("sharded"))


@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.parametrize("teacher", TEACHERS)
class TestTwoProcesses:
    def test_losses_and_gradients_are_those_of_a_whole_teacher(self, two_processes, teacher) -> None:
        for results in two_processes:
            for step in results[teacher]["sharded"]:
                torch.testing.assert_close(step, results[teacher]["whole"], rtol=1e-5, atol=1e-6)

    def test_each_process_holds_half_before_and_after_a_step(self, two_processes, teacher) -> None:
        for results in two_processes:
            for held, whole in results[teacher]["bytes"]:
                assert 0.4 * whole < held < 0.6 * whole
        before, _ = zip(*(results[teacher]["bytes"] for results in two_processes), strict=True)
        assert sum(held for held, _ in before) == before[0][1]

    def test_no_checkpoint_holds_it(self, two_processes, teacher) -> None:
        assert all(not results[teacher]["state"] for results in two_processes)


@pytest.mark.slow
@pytest.mark.two_process
def test_the_trainer_ends_in_the_weights_of_a_whole_teacher(two_processes) -> None:
    for results in two_processes:
        whole, sharded = results["trainers"][False], results["trainers"][True]
        assert whole.keys() == sharded.keys()
        for name, value in whole.items():
            torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.two_process
def test_each_process_reads_its_own_half_of_the_images(two_processes) -> None:
    first, second = ([row for batch in results["rows"] for row in batch] for results in two_processes)
    assert len(first) == len(second) == 16
    assert sorted(first + second) == list(range(32))


def test_one_process_has_nothing_to_divide() -> None:
    with pytest.raises(ValueError, match="start several"):
        shard_teacher(tiny_model(), torch.device("cpu"))
    with pytest.raises(ValueError, match="no teacher to shard"):
        shard_teacher(tiny_model(with_teacher=False), torch.device("cpu"))


def test_one_process_is_told_so_before_a_teacher_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start several"):
        tiny_trainer(tmp_path, tiny_model(with_teacher=False), shard_teacher=True)


def test_it_does_not_go_with_a_teacher_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="equally often"):
        DistillationTrainingArguments(output_dir=str(tmp_path), shard_teacher=True, teacher_cache="said")


def test_what_would_divide_the_student_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"sharded_teacher\.yaml and --shard_teacher"):
        tiny_trainer(tmp_path)
