"""How far a teacher's answers move in the precision that it is asked in, looked at before a training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kdmri.distillation import DistillationModel
from hf_kdmri.training.data_options import OptionError

TOLERANCE = 0.02  # of a probability, mean over images


@dataclass(frozen=True)
class MovedBy:
    """Change of the probability that moves most, of each image.

    Attributes:
        images: looked at.
        mean: over the images.
        most: of any image.
    """

    images: int
    mean: float
    most: float

    def __str__(self) -> str:
        """For people."""
        return (
            f"the teacher's probabilities move by {self.mean:.4f} on average and {self.most:.4f} at most in this "
            f"precision ({self.images} images; refused above {TOLERANCE} on average)"
        )


def rows_to_look_at(count: int, images: int = 32) -> list[int]:
    """Rows that are spread over a set of `count` images; neighbours may all be of one doubtful patient."""
    return np.linspace(0, count - 1, min(count, images)).astype(int).tolist()


@torch.no_grad()
def check_teacher_precision(
    model: DistillationModel, views: Tensor, precision: Callable[[], AbstractContextManager]
) -> MovedBy | None:
    """Compare the teacher's probabilities, as a training asks for them, with those in float32.

    Args:
        model: with a teacher, on the device of the views.
        views: (B, C, H, W) uint8, as `DistillationModel.forward` takes them.
        precision: makes the autocast of the training.

    Returns:
        How far they move; None where the training asks in float32.

    Raises:
        OptionError: by more than `TOLERANCE` on average.
    """
    device = views.device.type
    with precision():
        surrounding = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        dtype = model.teacher_dtype or surrounding
        if dtype == torch.float32:
            return None
        told = model.ask_teacher(views).logits
    exact = model.exact_teacher_logits(views)
    moved = (told.float().softmax(1) - exact.float().softmax(1)).abs().amax(1)
    found = MovedBy(len(views), moved.mean().item(), moved.max().item())
    name = str(dtype).removeprefix("torch.")
    if not found.mean <= TOLERANCE:
        raise OptionError(
            f"in {name} the teacher's probabilities move by {found.mean:.3f} on average ({found.images} images), more "
            f"than the {TOLERANCE} that are allowed; give --teacher_dtype float32"
        )
    return found
