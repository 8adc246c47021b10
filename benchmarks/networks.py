"""The pair of networks that benchmarks of training run: named by options, untrained."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.mat_file import LABEL_NAMES

LABELS = list(LABEL_NAMES)


def untrained_pair(arguments: argparse.Namespace, **options: Any) -> DistillationModel:
    """Student and teacher in training mode, the same weights every time.

    Args:
        arguments: with `student` and `teacher`, timm names, and `image_size` of both, pixels.
        options: of `DistillationModel`.
    """
    torch.manual_seed(0)
    build = dict(labels=LABELS, image_size=arguments.image_size)
    return DistillationModel(
        StudentForImageClassification.from_timm(arguments.student, **build),
        TeacherForImageClassification.from_timm(arguments.teacher, **build),
        **options,
    ).train()
