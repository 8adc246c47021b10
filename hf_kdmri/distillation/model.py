"""The module that trains: a student, and everything that teaches it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from hf_kdmri.distillation.geometry import fused_spatial_similarity_loss
from hf_kdmri.distillation.labels import teacher_column_order
from hf_kdmri.distillation.logits import kd_loss
from hf_kdmri.models import TimmClassifier, prepare_pixels


@dataclass
class LossOptions:
    """The numbers of the loss. A term with λ = 0 is not computed; the cross-entropy has weight 1.

    Args:
        logit_weight: λ of `kd_loss`.
        temperature: T of `kd_loss`.
        geometry_weight: λ of `fused_spatial_similarity_loss` over the stages.
        geometry_grid: raster of the spatial kernels, cells per side.
        label_smoothing: share of each label spread over all classes in the cross-entropy, 0 to 1.

    Raises:
        ValueError: a value that makes no loss.
    """

    logit_weight: float = 1.0
    temperature: float = 4.0
    geometry_weight: float = 1.0
    geometry_grid: int = 7
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in asdict(self).items():
            minimum = {"temperature": 1e-3, "geometry_grid": 1}.get(name, 0)
            if not minimum <= value:
                raise ValueError(f"{name} is {value}; it must be at least {minimum}")
        if not self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be below 1")


@dataclass
class DistillationOutput(ModelOutput):
    """What a training step returns.

    Args:
        loss: weighted sum of the terms, a scalar.
        logits: student logits (B, C).
        terms: unweighted terms by name: "ce", "kd", "geometry".
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class DistillationModel(nn.Module):
    """A student with its frozen teacher; without a teacher, plain supervised training by the same path.

    The teacher is always in eval mode, carries no gradient and is left out of `state_dict()`, so no checkpoint of the
    student ever contains it. Whatever else trains (projectors, fusion) is a submodule here, inside what `Trainer`
    wraps: held outside, it drifts apart between processes.

    Args:
        student: the model that trains.
        teacher: the model it learns from, or None.
        loss_options: the numbers of the loss; None for the defaults, or for those of the trainer's arguments.
        teacher_dtype: run the teacher under autocast in this dtype (`torch.bfloat16`), or None for the precision that
            surrounds the call.
        channels_last: lay out images channels-last, which convolutions on CPU and on tensor cores prefer.

    Raises:
        ValueError: teacher and student name different classes.

    Example:
        >>> from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
        >>> labels = ["meningioma", "glioma", "pituitary"]
        >>> student = StudentForImageClassification.from_timm("test_vit", labels=labels, image_size=64)
        >>> teacher = TeacherForImageClassification.from_timm("test_resnet", labels=labels, image_size=96)
        >>> model = DistillationModel(student, teacher).train()
        >>> views = torch.randint(0, 256, (2, 1, 96, 96), dtype=torch.uint8)
        >>> sorted(model(views, labels=torch.tensor([0, 1])).terms)
        ['ce', 'geometry', 'kd']
    """

    accepts_loss_kwargs = False  # every term is a mean over the batch; Trainer must divide by the accumulation steps

    def __init__(
        self,
        student: TimmClassifier,
        teacher: TimmClassifier | None = None,
        *,
        loss_options: LossOptions | None = None,
        teacher_dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.chosen_loss_options = loss_options
        self.loss_options = loss_options or LossOptions()
        self.teacher_dtype = teacher_dtype
        self.channels_last = False
        if teacher is not None:
            self._teacher_columns = teacher_column_order(student.labels, teacher.labels)
            teacher.requires_grad_(False).eval()
        if channels_last:
            self.use_channels_last()

    def use_channels_last(self) -> None:
        """Lay out weights and inputs channels-last from now on."""
        self.channels_last = True
        self.to(memory_format=torch.channels_last)

    @property
    def config(self) -> Any:
        """The student's config, which is what a checkpoint of this module describes."""
        return self.student.config

    def train(self, mode: bool = True) -> DistillationModel:
        """Set the mode of everything but the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """All weights but the teacher's."""
        prefix = kwargs.get("prefix", "")
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if key.startswith(f"{prefix}teacher.")]:
            del state[key]
        return state

    def head_state_dict(self) -> dict[str, Tensor]:
        """What trains beside the student: neither the student's weights nor the teacher's."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("student.")}

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> DistillationOutput:
        """Student logits and, with labels, the loss; the teacher is asked only while training.

        Args:
            pixel_values: one view for both models, (B, 1 or 3, H, W): uint8 raw intensities, or floating point
                normalised as the student expects. Each model gets it in its own size and normalisation.
            labels: (B,) class indices, in the student's order.

        Returns:
            `DistillationOutput`. In eval mode, or without a teacher, the loss is the cross-entropy alone.
        """
        student_input = self._input_of(self.student, pixel_values)
        if labels is None or not self.training or self.teacher is None:
            logits = self.student(student_input).logits
            if labels is None:
                return DistillationOutput(logits=logits)
            loss = self._cross_entropy(logits, labels)
            return DistillationOutput(loss=loss, logits=logits, terms={"ce": loss})

        needs_stages = self.loss_options.geometry_weight > 0
        with torch.no_grad(), self._teacher_precision(pixel_values.device):
            teacher_logits, teacher_stages = _run(
                self.teacher, self._input_of(self.teacher, pixel_values), needs_stages
            )
            teacher_logits = teacher_logits[:, self._teacher_columns]
        logits, stages = _run(self.student, student_input, needs_stages)

        terms = {"ce": self._cross_entropy(logits, labels)}
        if self.loss_options.logit_weight > 0:
            terms["kd"] = kd_loss(logits, teacher_logits, temperature=self.loss_options.temperature)
        if needs_stages:
            terms["geometry"] = fused_spatial_similarity_loss(
                stages, teacher_stages, grid=self.loss_options.geometry_grid
            )
        return DistillationOutput(loss=self.total(terms), logits=logits, terms=terms)

    def total(self, terms: dict[str, Tensor], warmup: float = 1.0) -> Tensor:
        """Cross-entropy plus the other terms, each times its λ and the warm-up factor (0 to 1)."""
        scale = {
            "ce": 1.0,
            "kd": self.loss_options.logit_weight * warmup,
            "geometry": self.loss_options.geometry_weight * warmup,
        }
        return torch.stack([scale[name] * term for name, term in terms.items()]).sum()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Validation loss is the plain cross-entropy, so that runs with and without smoothing compare.
        smoothing = self.loss_options.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    def _input_of(self, model: TimmClassifier, view: Tensor) -> Tensor:
        pixels = prepare_pixels(
            view,
            image_size=model.image_size,
            mean=model.pixel_mean,
            std=model.pixel_std,
            source_mean=self.student.pixel_mean,
            source_std=self.student.pixel_std,
        )
        return pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels

    def _teacher_precision(self, device: torch.device) -> AbstractContextManager:
        if self.teacher_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.teacher_dtype, enabled=self.teacher_dtype != torch.float32)


def _run(model: TimmClassifier, pixels: Tensor, needs_stages: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    if needs_stages:
        return model.stage_features(pixels)
    return model(pixels).logits, ()
