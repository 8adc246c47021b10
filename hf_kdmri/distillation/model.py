"""The module that trains: a student, and everything that teaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn import functional as F
from transformers.utils import ModelOutput

from hf_kdmri.distillation.heads import DistillationHeads
from hf_kdmri.distillation.labels import teacher_column_order
from hf_kdmri.distillation.options import MASK, LossOptions
from hf_kdmri.distillation.segmentation import tumour_mask_loss
from hf_kdmri.distillation.terms import Features, TeacherTargets, distillation_terms, teacher_targets
from hf_kdmri.models import TimmClassifier, fold_batch_norm, prepare_pixels

_NO_TEACHER = "this model has no teacher to ask; build it as DistillationModel(student, teacher)"


@dataclass
class DistillationOutput(ModelOutput):
    """What a training step returns.

    Args:
        loss: weighted sum of the terms, a scalar.
        logits: student logits (B, C).
        terms: unweighted terms by name: "ce" and those of `hf_kdmri.distillation.options.TERMS` whose λ is above 0.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class DistillationModel(nn.Module):
    """A student with its frozen teacher; without a teacher, plain supervised training by the same path.

    The teacher is always in eval mode, carries no gradient and is left out of `state_dict()`, so no checkpoint of the
    student ever contains it, and `load_state_dict` does not ask for it. Whatever else trains (`heads`: projectors,
    fusion, exits) is a submodule here, inside what `Trainer` wraps: held outside, it drifts apart between processes.

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
        ['ce', 'logit']
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
        self.register_load_state_dict_post_hook(_without_teacher)
        self.student = student
        self.teacher = teacher
        self.chosen_loss_options = loss_options
        self.teacher_dtype = teacher_dtype
        self.channels_last = False
        self._stand_in: tuple[TimmClassifier, Callable[..., Features]] | None = None  # in a tuple: no submodule
        self.equal_batches = False  # whether all processes are known to have batches of one size; a trainer knows
        if teacher is not None:
            # On the device, since a list as an index would be copied there in every step.
            columns = torch.tensor(teacher_column_order(student.labels, teacher.labels), device=student.device)
            self.register_buffer("_teacher_columns", columns, persistent=False)
            teacher.requires_grad_(False).eval()
        self.use_loss_options(loss_options or LossOptions())
        if channels_last:
            self.use_channels_last()

    def use_loss_options(self, options: LossOptions) -> None:
        """Set the numbers of the loss and build the heads that its terms need; before training, not in the midst of it.

        Raises:
            ValueError: stages that a term cannot compare, or stage weights that do not fit the number of stages.
        """
        self.loss_options = options
        models = {"student": self.student} | ({} if self.teacher is None else {"teacher": self.teacher})
        for side, model in models.items():
            if options.stage_weights is not None and len(options.stage_weights) != len(model.stage_channels):
                raise ValueError(
                    f"stage_weights is {options.stage_weights}, but the {side} gives {len(model.stage_channels)} stages"
                )
        self.heads = DistillationHeads(
            options,
            self.student.stage_channels,
            None if self.teacher is None else self.teacher.stage_channels,
            len(self.student.labels),
        ).to(self.student.device)
        if self.channels_last:
            self.heads.to(memory_format=torch.channels_last)

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

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        targets: dict[str, Tensor] | None = None,
    ) -> DistillationOutput:
        """Student logits and, with labels, the loss; the teacher is asked only while training.

        Args:
            pixel_values: one view for both models, (B, 1 or 3, H, W): uint8 raw intensities, or floating point
                normalised as the student expects. Each model gets it in its own size and normalisation.
            labels: (B,) class indices, in the student's order; or (B, K) probabilities, for terms that need no index.
            masks: (B, 1, H, W) tumour masks of the view, uint8 with 255 inside; needed for lesion weighting and for
                the second task, `mask_weight`.
            targets: the fields of `TeacherTargets` for these very views, from a teacher cache; the teacher is then not
                asked.

        Returns:
            `DistillationOutput`. In eval mode, or with every λ at 0, the loss is the cross-entropy alone; so it is
            without a teacher, unless `mask_weight` is above 0. Then no teacher is asked.

        Raises:
            ValueError: a term that is on needs masks, and there are none.
        """
        options = self.loss_options
        taught = self.teacher is not None and bool(options.terms)
        if labels is None or not self.training or not (taught or options.mask_weight > 0):
            logits = self.student(self._input_of(self.student, pixel_values)).logits
            if labels is None:
                return DistillationOutput(logits=logits)
            loss = self._cross_entropy(logits, labels)
            return DistillationOutput(loss=loss, logits=logits, terms={"ce": loss})

        needs_stages = options.mask_weight > 0 or (taught and options.needs_stages)
        # The teacher first: what it needs meanwhile is free again before the student keeps its activations.
        teacher = None
        if taught:
            if targets is None:
                teacher = self.ask_teacher(pixel_values)
            else:
                teacher = TeacherTargets(**targets)  # type: ignore[arg-type]  # no maps
        student = _run(self.student, self._input_of(self.student, pixel_values), needs_stages)
        terms = {"ce": self._cross_entropy(student.logits, labels)}
        if teacher is not None:
            terms |= distillation_terms(
                options, self.heads, student, teacher, labels, masks, equal_batches=self.equal_batches
            )
        if options.mask_weight > 0:
            if masks is None:
                raise ValueError("mask_weight needs a tumour mask for every image; give masks, or set it to 0")
            terms[MASK] = tumour_mask_loss(self.heads[MASK](student.stages), masks)
        return DistillationOutput(loss=self.total(terms), logits=student.logits, terms=terms)

    @torch.no_grad()
    def ask_teacher(self, pixel_values: Tensor, options: LossOptions | None = None) -> TeacherTargets:
        """What the teacher says of a view, reduced to what the terms compare.

        Args:
            pixel_values: as `forward` takes them.
            options: which terms; default the model's own.

        Raises:
            ValueError: there is no teacher.
        """
        options = options or self.loss_options
        if self.teacher is None:
            raise ValueError(_NO_TEACHER)
        teacher, run = self._stand_in or (self.teacher, _run)
        with self._teacher_precision(pixel_values.device):
            said = run(teacher, self._input_of(teacher, pixel_values), options.needs_stages)
        return teacher_targets(options, Features(self._in_student_order(said.logits), said.stages))

    @torch.no_grad()
    def exact_teacher_logits(self, pixel_values: Tensor) -> Tensor:
        """What `ask_teacher` rounds: logits (B, C) of the teacher itself, no copy of it, in its own precision.

        Args:
            pixel_values: as `forward` takes them.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError(_NO_TEACHER)
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self._in_student_order(self.teacher(self._input_of(self.teacher, pixel_values)).logits)

    @contextmanager
    def faster_teacher(self, *, compiled: bool = False) -> Iterator[None]:
        """Meanwhile ask a copy of the teacher that answers faster, its batch normalisation folded (`fold_batch_norm`).

        The copy is made of the weights as they are, where they are, and is no part of this module: it is not saved,
        moved or divided among processes. Where nothing can be folded, the teacher itself is asked.

        Args:
            compiled: compile it as well (`torch.compile`), once for any number of images from 2 on, and once more for a
                single one; done when it is first asked, in about a minute.

        Raises:
            ValueError: there is no teacher.
            TeacherCompileError: when it is asked, by `ask_teacher`: it cannot be compiled.
        """
        if self.teacher is None:
            raise ValueError("this model has no teacher to make faster")
        before = self._stand_in
        self._stand_in = fold_batch_norm(self.teacher) or self.teacher, _compiled_run() if compiled else _run
        try:
            yield
        finally:
            self._stand_in = before

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the faster teacher, which belongs to the training that made it."""
        return {**self.__dict__, "_stand_in": None}

    def total(self, terms: dict[str, Tensor], progress: float = 1.0) -> Tensor:
        """Cross-entropy plus the other terms, each times its λ at that share (0 to 1) of all steps."""
        return torch.stack([self.loss_options.weight(name, progress) * term for name, term in terms.items()]).sum()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Validation loss is the plain cross-entropy, so that runs with and without smoothing compare.
        smoothing = self.loss_options.label_smoothing_factor if self.training else 0.0
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    def _in_student_order(self, teacher_logits: Tensor) -> Tensor:
        return teacher_logits.index_select(1, cast(Tensor, self._teacher_columns))

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


def _run(model: TimmClassifier, pixels: Tensor, needs_stages: bool) -> Features:
    return Features(*model.stage_features(pixels)) if needs_stages else Features(model(pixels).logits)


def _without_teacher(model: nn.Module, incompatible: Any) -> None:
    """What torch calls after loading a state, maybe of a module around this one: no teacher's weights are missed."""
    if isinstance(model.teacher, nn.Module):
        left_out = tuple(f"teacher.{name}" for name in model.teacher.state_dict())
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(left_out)]


class TeacherCompileError(RuntimeError):
    """torch.compile cannot compile this teacher, or not here."""


def _compiled_run() -> Callable[..., Features]:
    run = torch.compile(_run, fullgraph=True)

    def on_any_number(model: TimmClassifier, pixels: Tensor, needs_stages: bool) -> Features:
        torch._dynamo.maybe_mark_dynamic(pixels, 0)  # or the last batch of an epoch would be compiled anew
        try:
            return run(model, pixels, needs_stages)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = str(error).splitlines()[0]
            raise TeacherCompileError(
                f"torch.compile cannot compile the teacher {model.config.architecture}: {reason} Leave compile_teacher "
                "out; training gives the same without, more slowly"
            ) from error

    return on_any_number
