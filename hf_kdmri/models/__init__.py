"""Teacher and student: transformers' timm wrapper, with stage maps and a checkpoint that four libraries load."""

from hf_kdmri.models.folding import fold_batch_norm
from hf_kdmri.models.image_classification import (
    KDConfig,
    StudentForImageClassification,
    TeacherForImageClassification,
    TimmClassifier,
)
from hf_kdmri.models.preprocessing import prepare_pixels
from hf_kdmri.models.stages import stage_indices
from hf_kdmri.models.timm_network import start_near_zero

__all__ = [
    "KDConfig",
    "StudentForImageClassification",
    "TeacherForImageClassification",
    "TimmClassifier",
    "fold_batch_norm",
    "prepare_pixels",
    "stage_indices",
    "start_near_zero",
]
