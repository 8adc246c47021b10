"""Losses as plain functions of tensors, and the module that holds a student with all that trains beside it.

Every loss takes the student's tensor first, then the teacher's, further arguments by keyword, and returns a scalar,
unweighted: it equals its paper's formula before the λ in front.
"""

from hf_kdmri.distillation.geometry import fused_spatial_similarity_loss, spatial_kernel, spatial_similarity_loss
from hf_kdmri.distillation.labels import teacher_column_order
from hf_kdmri.distillation.logits import kd_loss
from hf_kdmri.distillation.model import DistillationModel, DistillationOutput, LossOptions

__all__ = [
    "DistillationModel",
    "DistillationOutput",
    "LossOptions",
    "fused_spatial_similarity_loss",
    "kd_loss",
    "spatial_kernel",
    "spatial_similarity_loss",
    "teacher_column_order",
]
