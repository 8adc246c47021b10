"""The pair that `train_step.py --peers` trains, this project's ways to a step, and the floor below any of them."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import LABELS
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.distillation import LossOptions, fused_spatial_similarity_loss, kd_loss
from hf_kdmri.distillation.model import DistillationOutput
from hf_kdmri.models import TimmClassifier, prepare_pixels
from hf_kdmri.training.compiling import check_compiler
from hf_kdmri.training.options import OptionError
from hf_kdmri.training.teacher_cache import ARRAYS, TeacherCache, kept_targets

TEMPERATURE = 4.0
TOLERANCE = 1e-4  # of a loss in float32
ROUGH = 3e-2  # where the teacher or the student computes in bfloat16
COMPILED = "compiled teacher"
LOGITS_ONLY = LossOptions(geometry_weight=0.0, temperature=TEMPERATURE)
GEOMETRY = LossOptions(geometry_weight=1.0, temperature=TEMPERATURE)
CHECKED_GEOMETRY = 30.0  # times that the geometry counts where losses are compared: beside the others it is small


@dataclass(frozen=True)
class Contender:
    """One way to train the student.

    Args:
        step: a whole step: forward, backward, optimiser.
        loss: forward alone, in training mode; None where there is no loss to compare.
        weights: what that loss should be: these times the cross-entropy, T² · KL and geometry of the reference.
    """

    step: Callable[[], Any]
    loss: Callable[[], Tensor] | None = None
    weights: tuple[float, float, float] = (1.0, 1.0, 0.0)


def off_by(loss: float, weights: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """What a contender's loss should be, and how far it is off, as a share of that."""
    expected = sum(times * part for times, part in zip(weights, reference, strict=True))
    return expected, abs(loss - expected) / expected


def is_rounded(arguments: argparse.Namespace) -> bool:
    """Whether teacher or student computes in bfloat16."""
    return arguments.bf16 or arguments.teacher_dtype != "float32"


class Pair:
    """Teacher, student and one batch of views, the same for whoever asks.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, torch.device(arguments.device)
        draw = torch.Generator().manual_seed(0)
        shape = (arguments.batch_size, 1, arguments.image_size, arguments.image_size)
        self.views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(self.device)
        self.labels = torch.randint(0, len(LABELS), (arguments.batch_size,), generator=draw).to(self.device)
        self.teacher_dtype = getattr(torch, arguments.teacher_dtype)

    def student(self, *, tuned: bool = True) -> StudentForImageClassification:
        """The student as it starts; `tuned`, laid out channels-last."""
        torch.manual_seed(1)
        model = StudentForImageClassification.from_timm(
            self.arguments.student, labels=LABELS, image_size=self.arguments.image_size
        )
        return self._placed(model, tuned).train()

    def teacher(self, *, tuned: bool = True) -> TeacherForImageClassification:
        """The frozen teacher, its logits of standard deviation 2 or so on the batch; `tuned`, channels-last."""
        torch.manual_seed(2)
        model = TeacherForImageClassification.from_timm(
            self.arguments.teacher, labels=LABELS, image_size=self.arguments.image_size
        )
        model = self._placed(model, tuned).eval()
        with torch.no_grad():  # an untrained classifier says next to nothing, and any two losses of it would agree
            said = model(self.pixels(model, tuned=tuned)).logits
            model.timm_model.get_classifier().weight.mul_(2 / said.std())
        return model

    def pixels(self, model: TimmClassifier, *, tuned: bool = True) -> Tensor:
        """The views as a model's input."""
        pixels = prepare_pixels(self.views, image_size=model.image_size, mean=model.pixel_mean, std=model.pixel_std)
        return pixels.contiguous(memory_format=torch.channels_last) if tuned else pixels

    def optimiser(self, parameters: Any, *, tuned: bool = True) -> torch.optim.Optimizer:
        """AdamW, fused where `tuned`; its steps leave the weights as they are, so that all rounds are alike."""
        return torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=0.0, fused=True if tuned else None)

    def student_precision(self, *, tuned: bool = True) -> torch.autocast:
        """bfloat16 autocast with `--bf16`, where `tuned`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=tuned and self.arguments.bf16)

    def train_step(self, loss: Callable[[], Tensor], parameters: Any, *, tuned: bool = True) -> Callable[[], None]:
        """Forward, backward and optimiser."""
        optimiser = self.optimiser(parameters, tuned=tuned)

        def step() -> None:
            loss().backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    @torch.no_grad()
    def reference(self) -> tuple[float, float, float]:
        """Cross-entropy, T² · KL and geometry by this project's reference path: float32, plain layout."""
        student, teacher = self.student(tuned=False), self.teacher(tuned=False)
        zs, maps_s = student.stage_features(self.pixels(student, tuned=False))
        zt, maps_t = teacher.stage_features(self.pixels(teacher, tuned=False))
        geometry = fused_spatial_similarity_loss(maps_s, maps_t, grid=GEOMETRY.geometry_grid)
        kl = kd_loss(zs, zt, temperature=TEMPERATURE)
        return F.cross_entropy(zs, self.labels).item(), kl.item(), geometry.item()

    def _placed(self, model: Any, tuned: bool) -> Any:
        if tuned:
            model = model.to(memory_format=torch.channels_last)
        return model.to(self.device)


def student_step(pair: Pair, *, channels_last: bool = True) -> Contender:
    """The floor's first part: the student on tensors that are there."""
    student = pair.student(tuned=channels_last)
    pixels = pair.pixels(student, tuned=channels_last)

    def loss() -> Tensor:
        with pair.student_precision():
            logits = student(pixels).logits
        return F.cross_entropy(logits.float(), pair.labels)

    return Contender(pair.train_step(loss, student.parameters()), loss, (1.0, 0.0, 0.0))


def teacher_forward(pair: Pair, *, channels_last: bool = True) -> Contender:
    """The floor's second part: the teacher on tensors that are there."""
    teacher = pair.teacher(tuned=channels_last)
    pixels = pair.pixels(teacher, tuned=channels_last)

    def forward() -> None:
        enabled = pair.teacher_dtype != torch.float32
        with torch.inference_mode(), torch.autocast(pair.device.type, pair.teacher_dtype, enabled=enabled):
            teacher(pixels)

    return Contender(forward)


def faster_teacher(pair: Pair, *, compiled: bool) -> Contender:
    """The teacher as a training asks it, by views: folded, or compiled as well."""
    model = DistillationModel(pair.student(), pair.teacher(), teacher_dtype=pair.teacher_dtype, channels_last=True)
    _ask_faster_teacher(model.to(pair.device), compiled=compiled)
    return Contender(lambda: model.ask_teacher(pair.views))


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile works here."""
    try:
        check_compiler(device)
    except OptionError:
        return False
    return True


def _ask_faster_teacher(model: DistillationModel, *, compiled: bool) -> None:
    """From now on; until the process ends."""
    faster = ExitStack()
    faster.enter_context(model.faster_teacher(compiled=compiled))
    atexit.register(faster.close)


def ours(pair: Pair, options: LossOptions, *, compiled: bool = False, cached: bool = False) -> Contender:
    """`DistillationModel` as the trainer runs it, on uint8 views; with `cached`, the teacher's answers are on disk.

    Args:
        pair: teacher, student and views.
        options: which losses.
        compiled: with `compile_teacher`.
        cached: with `teacher_cache`.
    """
    model = DistillationModel(
        pair.student(), pair.teacher(), loss_options=options, teacher_dtype=pair.teacher_dtype, channels_last=True
    )
    model.to(pair.device).train()
    _ask_faster_teacher(model, compiled=compiled)
    cache = cached_answers(model, pair.views) if cached else None

    def outputs() -> DistillationOutput:
        targets = None if cache is None else cache.read(options, np.arange(len(pair.views)), 0, pair.device)
        with pair.student_precision():
            return model(pair.views, labels=pair.labels, targets=targets)

    def loss() -> Tensor:
        total = outputs().loss
        assert total is not None  # there are labels
        return total

    def compared() -> Tensor:
        terms: dict[str, Tensor] = outputs().terms  # type: ignore[assignment]  # likewise
        of_geometry = [weights[2] * terms["geometry"]] if weights[2] else []
        return torch.stack([terms["ce"], terms["logit"], *of_geometry]).sum()

    weights = (1.0, 1.0, CHECKED_GEOMETRY if options.geometry_weight > 0 else 0.0)
    parameters: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    return Contender(pair.train_step(loss, parameters), compared, weights)


def cached_answers(model: DistillationModel, views: Tensor) -> TeacherCache:
    """What the teacher says of a batch, as a teacher cache keeps it: half precision, mapped from disk."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, value in kept_targets(model.ask_teacher(views, dataclasses.replace(GEOMETRY, sample_weight=1.0))).items():
        np.save(folder / f"{name}.npy", value)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return TeacherCache(folder, len(views), 1, GEOMETRY.geometry_grid, arrays)


OURS: dict[str, Callable[[Pair], Contender]] = {
    "student step": student_step,
    "teacher forward": teacher_forward,
    "ours, logits": lambda pair: ours(pair, LOGITS_ONLY),
    "ours, geometry": lambda pair: ours(pair, GEOMETRY),
    f"ours, logits, {COMPILED}": lambda pair: ours(pair, LOGITS_ONLY, compiled=True),
    f"ours, geometry, {COMPILED}": lambda pair: ours(pair, GEOMETRY, compiled=True),
    "ours, logits, cached": lambda pair: ours(pair, LOGITS_ONLY, cached=True),
    "ours, geometry, cached": lambda pair: ours(pair, GEOMETRY, cached=True),
}
