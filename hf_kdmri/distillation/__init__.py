"""Losses as plain functions of tensors, and the module that holds a student with all that trains beside it.

Every loss takes the student's tensor first, then the teacher's, further arguments by keyword, and returns a scalar,
unweighted: it equals its paper's formula before the λ in front. Formulas, pitfalls and costs: `docs/losses.md`.
"""

from hf_kdmri.distillation.exits import StageExits
from hf_kdmri.distillation.feature_maps import attention_transfer_loss, hcl_loss, hint_loss
from hf_kdmri.distillation.fusion import AttentionBasedFusion, ReviewFusion, TopDownFusionExit
from hf_kdmri.distillation.gathering import gather_together, gather_with_gradient
from hf_kdmri.distillation.geometry import (
    fused_embedding,
    fused_spatial_kernel,
    fused_spatial_similarity_loss,
    kernel_difference,
    spatial_kernel,
    spatial_similarity_loss,
)
from hf_kdmri.distillation.heads import DistillationHeads
from hf_kdmri.distillation.kernels import cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.labels import teacher_column_order
from hf_kdmri.distillation.lesions import lesion_weights
from hf_kdmri.distillation.logits import dist_loss, dkd_loss, kd_loss, ofa_loss, standardize_logits
from hf_kdmri.distillation.model import DistillationModel, DistillationOutput, TeacherCompileError
from hf_kdmri.distillation.options import LossOptions
from hf_kdmri.distillation.projectors import (
    GroupwiseLinearProjector,
    HintProjector,
    MaskedGenerationProjector,
    OrthogonalProjector,
    PartialCrossAttentionProjector,
    attention_tokens,
    orthogonal_projection_loss,
    partial_cross_attention_loss,
)
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss
from hf_kdmri.distillation.segmentation import TumourMaskHead, tumour_mask_loss
from hf_kdmri.distillation.terms import Features, TeacherTargets, distillation_terms, teacher_targets

__all__ = [
    "AttentionBasedFusion",
    "DistillationHeads",
    "DistillationModel",
    "DistillationOutput",
    "Features",
    "GroupwiseLinearProjector",
    "HintProjector",
    "LossOptions",
    "MaskedGenerationProjector",
    "OrthogonalProjector",
    "PartialCrossAttentionProjector",
    "ReviewFusion",
    "StageExits",
    "TeacherCompileError",
    "TeacherTargets",
    "TopDownFusionExit",
    "TumourMaskHead",
    "attention_tokens",
    "attention_transfer_loss",
    "cka_loss",
    "dist_loss",
    "distillation_terms",
    "dkd_loss",
    "fused_embedding",
    "fused_spatial_kernel",
    "fused_spatial_similarity_loss",
    "gather_together",
    "gather_with_gradient",
    "gromov_wasserstein_loss",
    "hcl_loss",
    "hint_loss",
    "kd_loss",
    "kernel_difference",
    "lesion_weights",
    "ofa_loss",
    "orthogonal_projection_loss",
    "partial_cross_attention_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "similarity_preserving_loss",
    "spatial_kernel",
    "spatial_similarity_loss",
    "standardize_logits",
    "teacher_column_order",
    "teacher_targets",
    "tumour_mask_loss",
]
