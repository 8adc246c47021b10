"""What trains beside the student and is dropped after training: projectors, fusions and exits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hf_kdmri.distillation.exits import StageExits
from hf_kdmri.distillation.fusion import ReviewFusion, TopDownFusionExit
from hf_kdmri.distillation.options import MASK, LossOptions
from hf_kdmri.distillation.projectors import (
    GroupwiseLinearProjector,
    HintProjector,
    MaskedGenerationProjector,
    OrthogonalProjector,
    PartialCrossAttentionProjector,
)
from hf_kdmri.distillation.segmentation import TumourMaskHead


class DistillationHeads(nn.ModuleDict):
    """The modules that the chosen terms need, by name: "exit", "feature" and "mask", or none of them.

    Args:
        options: says which terms are on.
        student_channels: channels of the student's stages, finest first.
        teacher_channels: channels of the teacher's stages, finest first; None without a teacher, whose terms are then
            off.
        num_classes: K.

    Raises:
        ValueError: review fusion between unequal numbers of stages.

    Example:
        >>> options = LossOptions(exit_weight=1.0, feature_weight=1.0, feature_loss="hint")
        >>> sorted(DistillationHeads(options, [8, 16], [12, 24], num_classes=3))
        ['exit', 'feature']
    """

    def __init__(
        self,
        options: LossOptions,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int] | None,
        num_classes: int,
    ) -> None:
        super().__init__()
        if options.mask_weight > 0:
            self[MASK] = TumourMaskHead(student_channels)
        if teacher_channels is None:
            return
        if options.exit_weight > 0:
            self["exit"] = TopDownFusionExit(student_channels, num_classes)
        if options.feature_weight > 0:
            head = _feature_head(options.feature_loss, student_channels, teacher_channels, num_classes)
            if head is not None:
                self["feature"] = head


def middle_pair(student: Sequence, teacher: Sequence) -> tuple:
    """The stages that one-to-one losses compare: the middle one of each side, the deeper where there is none.

    FitNet's hint is a middle layer, and a projector between the deepest stages can have more weights than the student.

    Example:
        >>> middle_pair(["s1", "s2", "s3"], ["t1", "t2", "t3", "t4"])
        ('s2', 't3')
    """
    return student[len(student) // 2], teacher[len(teacher) // 2]


def _feature_head(
    loss: str, student_channels: Sequence[int], teacher_channels: Sequence[int], num_classes: int
) -> nn.Module | None:
    if loss == "review":
        return ReviewFusion(student_channels, teacher_channels)
    if loss == "ofa":
        return StageExits(student_channels, num_classes)
    projectors = {
        "hint": HintProjector,
        "partial_cross_attention": PartialCrossAttentionProjector,
        "groupwise_linear": GroupwiseLinearProjector,
        "masked_generation": MaskedGenerationProjector,
        "orthogonal_projection": OrthogonalProjector,
    }
    return projectors[loss](*middle_pair(student_channels, teacher_channels)) if loss in projectors else None
