"""A training step reads nothing back from the device that it runs on, and brings nothing there that it waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.mixing import mix_views
from hf_kdmri.distillation import LossOptions
from hf_kdmri.distillation.options import FEATURE_LOSSES
from hf_kdmri.models import prepare_pixels
from tests.tiny import tiny_model, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
# On an accelerator the host waits in each: a value is read, or the size of a result depends on values.
READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_linalg_check_errors"}
READS |= {
    "unique_dim",
    "_unique2",
    "bincount",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "allclose",
}
CONSTANTS = {"lift_fresh", "lift_fresh_copy"}  # torch.tensor(values, device=...) copies from pageable memory


class Waits(TorchDispatchMode):
    """Lists the operations of a stretch of code for which an accelerator's host would wait."""

    def __init__(self, *, constants: bool) -> None:
        super().__init__()
        self.found: list[str] = []
        self.forbidden = READS | (CONSTANTS if constants else set())
        self._methods = _Methods(self)

    def note(self, name: str, arguments: Any) -> None:
        by_mask = name == "index" and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
            for one in arguments[1]
            if one is not None
        )
        if name in self.forbidden or by_mask:
            self.found.append(name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.note(function.overloadpacket.__name__, args)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *problem):
        super().__exit__(*problem)
        self._methods.__exit__(*problem)


class _Methods(TorchFunctionMode):
    """Those that a CPU answers without an operation, such as `tolist`."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            self.waits.found.append(name)
        return function(*args, **(kwargs or {}))


def waits_of(run, *, constants: bool = True) -> list[str]:
    with Waits(constants=constants) as waits:
        run()
    return waits.found


@pytest.mark.parametrize(
    ("told", "run"),
    [
        ("item", lambda x: x.sum().item()),
        ("tolist", lambda x: x.tolist()),
        ("__bool__", lambda x: bool(x.sum() > 0)),
        ("index", lambda x: x[x > 0]),
        ("lift_fresh", lambda x: x * torch.tensor([1.0, 2.0])),
        ("nonzero", lambda x: torch.nonzero(x)),
    ],
)
def test_the_measure_finds_what_it_looks_for(told: str, run):
    assert told in waits_of(lambda: run(torch.ones(2)))


LOSSES: list[dict[str, Any]] = [
    {},
    {"logit_loss": "dkd"},
    {"logit_loss": "dist", "sample_weight": 1.0},
    {"geometry_difference": "kl"},
    {"sample_weight": 1.0, "sample_loss": "cka"},
    {"exit_weight": 0.5},
    {"sample_weight": 1.0, "sample_loss": "similarity_preserving"},
    {"sample_weight": 1.0, "sample_loss": "rkd"},
    *({"feature_weight": 0.5, "feature_loss": name} for name in FEATURE_LOSSES),
    {"geometry_weight": 1.0, "standardize_logits": True},
    {"label_smoothing_factor": 0.1, "distillation_warmup": 0.5},
]


@pytest.mark.parametrize("losses", LOSSES, ids=lambda losses: "-".join(map(str, losses.values())) or "default")
def test_forward_loss_and_backward(tmp_path: Path, losses: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    trainer = tiny_trainer(tmp_path, logging_strategy="no", save_strategy="no", eval_strategy="no", **losses)
    monkeypatch.setattr(trainer, "look_at_loss", lambda *arguments: None)  # reads at once on a CPU, later on a GPU
    batch = trainer.train_dataset.__getitems__(range(8))
    assert isinstance(batch["index"], np.ndarray)
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()  # what is made once
    assert not waits_of(lambda: trainer.compute_loss(trainer.model, batch).backward())


def test_clipping_and_the_optimisers_step(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, logging_strategy="no", save_strategy="no", eval_strategy="no")
    optimiser = trainer.create_optimizer()
    assert trainer.args.optim == "adamw_torch_fused" and optimiser.defaults["fused"]
    parameters = [weight for weight in trainer.model.parameters() if weight.requires_grad]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, trainer.args.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()

    trainer.model.train()
    for _ in range(2):  # what is made in the first step, is made once
        trainer.compute_loss(trainer.model, trainer.train_dataset.__getitems__(range(8))).backward()
        found = waits_of(step)
    assert not found


def test_views_are_drawn_on_the_host_and_applied_without_looking():
    """`torch.from_numpy` looks like a constant here; what it gives goes to the device pinned."""
    views, masks = (
        torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8),
        torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
    )
    found = waits_of(lambda: RandomViews().with_masks(views, masks, np.arange(2), seed=0, epoch=0), constants=False)
    assert not found
    options = dict(alpha=0.2, classes=3, seed=0, epoch=0)
    labels = torch.tensor([0, 2])
    assert not waits_of(lambda: mix_views(views, masks, labels, np.arange(2), **options), constants=False)


def test_an_index_on_the_host_draws_the_views_of_a_tensor():
    views, rows = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8), np.array([3, 1, 7, 9])
    one, other = (RandomViews()(views, index, seed=1, epoch=2) for index in (rows, torch.from_numpy(rows)))
    assert torch.equal(one, other)


def test_normalisation_is_filled_in_where_the_view_is():
    view = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    numbers = dict(image_size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert not waits_of(lambda: prepare_pixels(view, **numbers))
    expected = (view / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    assert torch.equal(prepare_pixels(view, **numbers), expected)


@pytest.mark.parametrize("part", ["teacher", "student", "stages", "step"])
def test_what_runs_in_a_step_is_one_graph(part: str):
    """A break of the graph would raise: it is what `--torch_compile` gains from."""
    torch._dynamo.reset()
    model = tiny_model().train()
    model.use_loss_options(LossOptions(geometry_weight=1.0))
    views, labels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    pixels = torch.randn(4, 3, 32, 32)
    runs = {
        "teacher": (lambda: model.ask_teacher(views).logits),
        "student": (lambda: model.student(pixels).logits),
        "stages": (lambda: model.student.stage_features(pixels)[0]),
        "step": (lambda: model(views, labels=labels).loss),
    }
    run = runs[part]
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), run())


@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one(tmp_path: Path):
    losses = []
    for name, options in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "eager"})):
        torch._dynamo.reset()
        trainer = tiny_trainer(tmp_path / name, num_train_epochs=1, augmentation=RandomViews(), **options)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        assert (tmp_path / name / "checkpoint-4" / "model.safetensors").is_file()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
