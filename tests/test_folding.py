"""Batch normalisation folded into the frozen teacher's convolutions: the same answers, and nothing of it is kept."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from hf_kdmri import DistillationModel, TeacherForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.distillation import LossOptions, TeacherCompileError
from hf_kdmri.distillation.model import _compiled_run
from hf_kdmri.models import fold_batch_norm
from hf_kdmri.training.compiling import check_compiler
from hf_kdmri.training.data_options import OptionError
from tests.tiny import LABELS, tiny_model, tiny_trainer

COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is absent"
)


def teacher_of(architecture: str, image_size: int = 64) -> TeacherForImageClassification:
    """A teacher whose normalisations have statistics and weights of their own, as trained ones have."""
    model = TeacherForImageClassification.from_timm(architecture, labels=LABELS, image_size=image_size)
    draw = torch.Generator().manual_seed(0)
    for module in normalisations(model):
        shape = module.running_mean.shape
        module.running_mean.copy_(0.1 * torch.randn(shape, generator=draw))
        module.running_var.copy_(0.5 + torch.rand(shape, generator=draw))
        module.weight.data.copy_(0.5 + torch.rand(shape, generator=draw))
        module.bias.data.copy_(0.1 * torch.randn(shape, generator=draw))
    return model


def pair() -> DistillationModel:
    """As `tiny_model`, but the teacher has normalisations."""
    return DistillationModel(tiny_model(with_teacher=False).student, teacher_of("test_resnet")).train()


def normalisations(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def answers(model: TeacherForImageClassification, count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(7)
    logits, stages = model.stage_features(torch.randn(count, 3, model.image_size, model.image_size, generator=draw))
    return [logits, *stages]


@pytest.mark.parametrize(
    ("architecture", "left"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("test_byobnet", 0),
        ("tf_efficientnet_lite0", 0),
        ("mobileone_s0", 35),
    ],
)
def test_the_copy_answers_as_the_model_does(architecture: str, left: int):
    """In mobileone there is a normalisation of the block's input as well, which follows no convolution and stays."""
    model = teacher_of(architecture)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    assert folded is not None
    assert len(normalisations(folded)) == left
    for one, other in zip(answers(model), answers(folded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_activations_inside_a_normalisation_stay():
    model = teacher_of("test_efficientnet")
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    stages = answers(fold_batch_norm(model))[1:]
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(stages, answers(model)[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_copy_is_made_in_full_precision_and_given_back_in_the_model_s(dtype: torch.dtype):
    model = teacher_of("test_resnet")
    exact, folded = fold_batch_norm(model), fold_batch_norm(copy.deepcopy(model).to(dtype))
    assert exact is not None and folded is not None
    assert folded.dtype == dtype
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-6
    for one, other in zip(exact.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=rounding, atol=rounding * one.abs().max().item())


@pytest.mark.parametrize("kind", ["weights read elsewhere", "called by name"])
def test_a_network_with_ways_of_its_own_teaches_as_it_is(kind: str):
    model = teacher_of("test_resnet")
    network: Any = model.timm_model
    network.layer1[0] = nn.Sequential(network.layer1[0], Strange(network.feature_info[1]["num_chs"], kind)).eval()
    if kind == "called by name":
        folded = fold_batch_norm(model)
        assert folded is not None and len(normalisations(folded)) == 1
        return
    with pytest.warns(UserWarning, match="batch normalisation of test_resnet is not folded: AttributeError"):
        assert fold_batch_norm(model) is None


def test_a_network_without_any_is_left_alone():
    assert fold_batch_norm(teacher_of("test_vit")) is None


class Strange(nn.Module):
    """A first convolution and its normalisation, put together in a way of its own."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        convolution = Standardised if kind == "standardised" else nn.Conv2d
        self.conv, self.bn, self.kind = convolution(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), kind
        nn.init.constant_(self.bn.running_var, 3.0)  # type: ignore[arg-type]  # it tracks them

    def forward(self, x: Tensor) -> Tensor:
        """`x` of the block before."""
        seen = self.conv(x)
        if self.kind == "used elsewhere":
            return self.bn(seen) + seen
        if self.kind == "weights read elsewhere":
            return self.bn(seen) * self.bn.weight.mean()
        if self.kind == "called by name":
            return self.bn(input=seen)
        if self.kind == "used twice":
            return self.bn(seen) + self.conv(2 * x)
        return self.bn(seen)


class Standardised(nn.Conv2d):
    """Its weights are scaled in the forward, which would undo any folding."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, H, W)."""
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize("kind", ["used elsewhere", "used twice", "standardised"])
def test_what_cannot_be_folded_is_not(kind: str):
    model = teacher_of("test_resnet")
    network: Any = model.timm_model
    network.layer1[0] = nn.Sequential(network.layer1[0], Strange(network.feature_info[1]["num_chs"], kind)).eval()
    folded = fold_batch_norm(model)
    assert folded is not None
    assert len(normalisations(folded)) == 1
    torch.testing.assert_close(answers(model)[0], answers(folded)[0], rtol=1e-4, atol=1e-5)


def test_a_distillation_asks_the_copy_and_keeps_nothing_of_it():
    model = pair()
    model.use_loss_options(LossOptions(geometry_weight=1.0))
    views = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    plain, names = model.ask_teacher(views), list(model.state_dict())
    parameters = len(list(model.parameters()))
    with model.faster_teacher():
        asked = model._stand_in[0]  # type: ignore[index]
        assert asked is not model.teacher
        assert not normalisations(asked)
        told = model.ask_teacher(views)
        torch.testing.assert_close(told.logits, plain.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told.kernel, plain.kernel, rtol=1e-4, atol=1e-5)
        assert list(model.state_dict()) == names
        assert len(list(model.parameters())) == parameters
    assert model._stand_in is None
    with (
        pytest.raises(ValueError, match="no teacher to make faster"),
        DistillationModel(model.student).faster_teacher(),
    ):
        pass


def test_training_is_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = []
    for name in ("folded", "plain"):
        if name == "plain":
            monkeypatch.setattr("hf_kdmri.distillation.model.fold_batch_norm", lambda model: None)
        trainer = tiny_trainer(tmp_path / name, pair(), num_train_epochs=1)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        assert trainer.model._stand_in is None
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@COMPILER
@pytest.mark.slow
def test_a_compiled_teacher_says_the_same_of_any_number_of_images():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = pair()
    views = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    plain = model.ask_teacher(views).logits
    with model.faster_teacher(compiled=True):
        for count in (4, 5, 2, 3):
            told = model.ask_teacher(views[:count]).logits
            torch.testing.assert_close(told, plain[:count], rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_cannot_be_compiled_is_told_as_that(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    model = pair()
    views = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch._dynamo.graph_break()

    monkeypatch.setattr(type(model.teacher), "stage_features", forward)
    monkeypatch.setattr(type(model.teacher), "forward", forward)
    model._stand_in = model.teacher, _compiled_run()  # type: ignore[assignment]  # it has a teacher
    with pytest.raises(TeacherCompileError, match=r"the teacher test_resnet: .* Leave compile_teacher out"):
        model.ask_teacher(views)


def test_the_faster_teacher_goes_with_its_training(tmp_path: Path):
    model = pair()
    with model.faster_teacher():
        outer = model._stand_in
        with model.faster_teacher():
            assert model._stand_in is not outer
        assert model._stand_in is outer
        assert copy.deepcopy(model)._stand_in is None
        torch.save(model, tmp_path / "whole.pt")


def test_a_cache_of_the_folded_teacher_is_what_training_asks(tmp_path: Path):
    """Cached or asked, each step's losses are the same to half precision."""
    losses = []
    ways: dict[str, dict[str, Any]] = {
        "asked": {"views_per_image": 1},
        "cached": {"teacher_cache": str(tmp_path / "c")},
    }
    for name, options in ways.items():
        trainer = tiny_trainer(tmp_path / name, pair(), num_train_epochs=1, augmentation=RandomViews(), **options)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_with_a_folded_teacher_the_whole_is_one_graph():
    torch._dynamo.reset()
    model = pair()
    model.use_loss_options(LossOptions(geometry_weight=1.0))
    views, labels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    with model.faster_teacher():
        compiled = torch.compile(lambda: model(views, labels=labels).loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(), model(views, labels=labels).loss)


@COMPILER
@pytest.mark.slow
def test_a_training_with_a_compiled_teacher_is_the_plain_one(tmp_path: Path):
    losses = []
    for compiled in (True, False):
        torch._dynamo.reset()
        trainer = tiny_trainer(tmp_path / str(compiled), pair(), num_train_epochs=1, compile_teacher=compiled)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_a_compiler_it_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    check_compiler.cache_clear()
    trainer = tiny_trainer(tmp_path / "run", pair(), compile_teacher=True)
    with pytest.raises(OptionError, match=r"No working C\+\+ compiler.*Install a C\+\+ compiler"):
        trainer.train()
    assert trainer.state.global_step == 0
    torch._dynamo.reset()


@pytest.mark.parametrize("other", ["torch_compile", "shard_teacher"])
def test_options_that_do_not_go_together(tmp_path: Path, other: str):
    with pytest.raises(ValueError, match=f"compile_teacher cannot go with {other}"):
        tiny_trainer(tmp_path, compile_teacher=True, **{other: True})
