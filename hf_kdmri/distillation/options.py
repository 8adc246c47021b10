"""Every number of the loss, with its default, its range and its help text."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from hf_kdmri.distillation.geometry import KernelDifference, check_weights

TERMS = ("logit", "geometry", "sample", "exit", "feature")  # what a teacher adds
MASK = "mask"  # the second task, with or without a teacher
_LARGEST_GRID = 56
LOGIT_LOSSES = ("kd", "dkd", "dist")
KERNEL_DIFFERENCES = get_args(KernelDifference)
SAMPLE_LOSSES = ("rkd", "similarity_preserving", "cka", "gromov_wasserstein")
FEATURE_LOSSES = (
    "hint",
    "attention_transfer",
    "review",
    "ofa",
    "partial_cross_attention",
    "groupwise_linear",
    "masked_generation",
    "orthogonal_projection",
)


def _about(help_text: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"help": help_text, "choices": list(choices)} if choices else {"help": help_text}


_WARMUP = _about("Share of all steps over which this λ rises from 0; default: distillation_warmup.")


@dataclass
class LossOptions:
    """The numbers of the loss. A term with λ = 0 is not computed; the cross-entropy has weight 1.

    The fields, their defaults and what they mean are those of `train_kd.py --help`; each is also a field of
    `DistillationTrainingArguments`. Five terms can join the cross-entropy, each with a λ (`<term>_weight`) and a
    warm-up of its own (`<term>_warmup`): `logit` on the logits, `geometry` on the positions of one image, `sample` on
    the images of a batch, `exit` on the learned fusion of the student's stages, and `feature`, one of the losses across
    architectures that others have published. They need a teacher; `mask_weight`, the second task of drawing the tumour,
    does not.

    Raises:
        ValueError: a value that makes no loss.
    """

    logit_weight: float = field(
        default=1.0, metadata=_about("λ of the loss on the teacher's logits; 0 switches the term off.")
    )
    logit_loss: str = field(
        default="kd", metadata=_about("Loss on the logits: kd (Hinton), dkd (decoupled) or dist.", LOGIT_LOSSES)
    )
    temperature: float = field(default=4.0, metadata=_about("Temperature T of the loss on the logits."))
    standardize_logits: bool = field(default=False, metadata=_about("Standardise both sides' logits first."))
    dkd_alpha: float = field(default=1.0, metadata=_about("α of dkd: weight of the label against the other classes."))
    dkd_beta: float = field(default=1.0, metadata=_about("β of dkd: weight of the other classes among themselves."))
    dist_beta: float = field(default=1.0, metadata=_about("β of dist: weight of the correlation over the classes."))
    dist_gamma: float = field(default=1.0, metadata=_about("γ of dist: weight of the correlation over the batch."))
    geometry_weight: float = field(
        default=0.0, metadata=_about("λ of the fused spatial similarity over the stages; 0 switches it off.")
    )
    geometry_grid: int = field(default=7, metadata=_about("Cells per side of the raster that stages are compared on."))
    geometry_difference: str = field(
        default="squared", metadata=_about("How the spatial kernels are compared.", KERNEL_DIFFERENCES)
    )
    stage_weights: list[float] | None = field(
        default=None, metadata=_about("One weight per stage, finest first, in the fusion of kernels and embeddings.")
    )
    lesion_weighting: bool = field(
        default=False,
        metadata=_about("Geometry by the tumour mask: its inside, its border, the rest count a third each."),
    )
    sample_weight: float = field(
        default=0.0, metadata=_about("λ of the geometry between the images of a batch; 0 switches it off.")
    )
    sample_loss: str = field(
        default="rkd", metadata=_about("Loss between images; rkd is distance + 2 · angle.", SAMPLE_LOSSES)
    )
    exit_weight: float = field(
        default=0.0, metadata=_about("λ of the exit behind the top-down fusion of the student's stages; 0: no exit.")
    )
    ofa_gamma: float = field(
        default=1.0, metadata=_about("γ of the teacher at the exits; above 1 its confident images count more.")
    )
    feature_weight: float = field(
        default=0.0, metadata=_about("λ of a published loss on the features; 0 switches it off.")
    )
    feature_loss: str = field(
        default="hint", metadata=_about("Which one; review is ABF with HCL, ofa an exit per stage.", FEATURE_LOSSES)
    )
    mask_weight: float = field(
        default=0.0,
        metadata=_about(
            "λ of drawing the tumour mask as a second task, from the stages of whatever model trains (teacher, "
            "baseline and student alike); 0: masks are not used."
        ),
    )
    label_smoothing_factor: float = field(
        default=0.0, metadata=_about("Share of each label spread over all classes, 0 to 1.")
    )
    distillation_warmup: float = field(
        default=0.0, metadata=_about("Share of all steps over which each λ rises linearly from 0.")
    )
    logit_warmup: float | None = field(default=None, metadata=_WARMUP)
    geometry_warmup: float | None = field(default=None, metadata=_WARMUP)
    sample_warmup: float | None = field(default=None, metadata=_WARMUP)
    exit_warmup: float | None = field(default=None, metadata=_WARMUP)
    feature_warmup: float | None = field(default=None, metadata=_WARMUP)
    shuffle_teacher: bool = field(
        default=False, metadata=_about("Control: teach each image with another one of its batch.")
    )

    def __post_init__(self) -> None:
        """Check ranges at creation, not at step 900."""
        minimum = {"temperature": 1e-3, "geometry_grid": 2, "ofa_gamma": 1e-3}
        for option in fields(LossOptions):
            value, choices = getattr(self, option.name), option.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{option.name} is {value!r}; choose one of {', '.join(choices)}")
            least = minimum.get(option.name, 0)
            if isinstance(value, (int, float)) and not least <= value < math.inf:
                raise ValueError(f"{option.name} is {value}; it must be a finite number of at least {least}")
            if option.name.endswith("warmup") and value is not None and value > 1:
                raise ValueError(f"{option.name} is {value}; it is a share of all steps, 0 to 1")
        if not self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor is {self.label_smoothing_factor}; it must be below 1")
        if self.stage_weights is not None:
            check_weights("stage_weights", self.stage_weights)
        if self.geometry_grid > _LARGEST_GRID:
            raise ValueError(
                f"geometry_grid is {self.geometry_grid}; at most {_LARGEST_GRID} is taken, since every image's kernel "
                "has grid⁴ numbers, and no stage is that fine"
            )
        if self.lesion_weighting and not self.geometry_weight > 0:
            raise ValueError(
                "lesion_weighting weights the positions of the term geometry, which is off; set geometry_weight above 0"
            )
        if self.lesion_weighting and self.geometry_difference == "cka":
            raise ValueError(
                'geometry_difference "cka" takes no weights of positions; choose another, or leave lesion_weighting out'
            )
        if self.uses("sample", "gromov_wasserstein") and importlib.util.find_spec("ot") is None:
            raise ValueError("sample_loss gromov_wasserstein needs POT: pip install 'hf_kdmri[ot]'")

    def uses(self, term: str, loss: str) -> bool:
        """Whether a term is on with this loss."""
        return getattr(self, f"{term}_weight") > 0 and getattr(self, f"{term}_loss") == loss

    @property
    def terms(self) -> list[str]:
        """The terms of the teacher whose λ is above 0."""
        return [term for term in TERMS if getattr(self, f"{term}_weight") > 0]

    @property
    def needs_stages(self) -> bool:
        """Whether any term of the teacher looks at feature maps."""
        return any(term != "logit" for term in self.terms)

    @property
    def needs_masks(self) -> bool:
        """Whether any term looks at tumour masks."""
        return self.lesion_weighting or self.mask_weight > 0

    @property
    def needs_teacher_maps(self) -> bool:
        """Whether any term compares the teacher's maps themselves, and not a relation that is taken from them."""
        return self.feature_weight > 0 and self.feature_loss != "ofa"

    @property
    def warms_up(self) -> bool:
        """Whether any λ changes in the course of training."""
        return any(self.weight(term, 0.0) != self.weight(term) for term in TERMS)

    def weight(self, term: str, progress: float = 1.0) -> float:
        """λ of a term.

        Args:
            term: one of `TERMS`, `MASK`, or "ce", whose weight is always 1; the last two know no warm-up.
            progress: share of all steps done, 0 to 1.
        """
        if term == "ce":
            return 1.0
        if term == MASK:
            return self.mask_weight
        own = getattr(self, f"{term}_warmup")
        warmup = self.distillation_warmup if own is None else own
        return getattr(self, f"{term}_weight") * (1.0 if progress >= warmup else progress / warmup)
