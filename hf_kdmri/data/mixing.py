"""mixup: pictures between the pictures of a batch, for teacher and student alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hf_kdmri.data.appearance import image_keys
from hf_kdmri.data.transfer import send

_STREAM = 2  # keeps these draws apart from those of geometry and appearance


def mix_views(
    views: Tensor,
    masks: Tensor | None,
    labels: Tensor,
    index: Tensor | np.ndarray,
    *,
    alpha: float,
    classes: int,
    seed: int,
    epoch: int | Tensor | np.ndarray,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mix each view with that of the image before it in the batch, the first with the last.

    view ← λ view + (1 − λ) other, and likewise its mask and its label. λ is drawn for each image from Beta(α, α) and is
    the larger of λ and 1 − λ, so that a view stays its own image's more than the other's; over the pairs of a batch the
    mixtures are as likely as without. λ follows from (seed, epoch, index), the partner from the batch.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv 1710.09412); with one mixture
    for teacher and student: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022
    (arXiv 2106.05237).

    Args:
        views: (B, C, H, W), uint8 or floating point.
        masks: (B, 1, H, W) uint8, or None.
        labels: (B,) class indices.
        index: (B,) position of each image in its data set, best a NumPy array.
        alpha: α, above 0; small values mix little, 1 draws λ evenly.
        classes: K.
        seed: of the run.
        epoch: counted from 0; one for all images, or (B,).

    Returns:
        Views and masks in the shapes and types given, and labels as probabilities (B, K), float32.

    Example:
        >>> views = torch.tensor([0, 100], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> mixed, _, labels = mix_views(
        ...     views, None, torch.tensor([0, 1]), np.arange(2), alpha=1.0, classes=2, seed=0, epoch=0
        ... )
        >>> bool((mixed.flatten() == (100 * labels[:, 1]).round()).all())
        True
    """
    drawn = [np.random.default_rng((*key, _STREAM)).beta(alpha, alpha) for key in image_keys(seed, epoch, index)]
    larger = np.maximum(drawn, np.subtract(1, drawn)).astype(np.float32)
    share = send(torch.from_numpy(larger), views.device)
    probabilities = views.new_zeros(len(labels), classes, dtype=torch.float32).scatter_(1, labels[:, None], 1.0)
    return _mixed(views, share), None if masks is None else _mixed(masks, share), _mixed(probabilities, share)


def _mixed(values: Tensor, share: Tensor) -> Tensor:
    share = share.view(-1, *[1] * (values.ndim - 1))
    with torch.autocast(values.device.type, enabled=False):
        mixed = torch.lerp(values.roll(1, 0).float(), values.float(), share)
    return mixed.to(values.dtype) if values.is_floating_point() else mixed.round_().to(values.dtype)
