"""Losses on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kd_loss(zs: Tensor, zt: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation loss: T² · KL(softmax(zt / T) ‖ softmax(zs / T)), mean over the batch.

    The gradient of the divergence shrinks with 1 / T², so the factor T² keeps its size beside the cross-entropy as the
    temperature changes. Computed in float32, and no gradient flows into the teacher.

    Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), §2.

    Args:
        zs: student logits (B, C).
        zt: teacher logits (B, C).
        temperature: T > 0.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    Example:
        >>> round(kd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0).item(), 4)
        0.4621
    """
    if zs.shape != zt.shape or zs.ndim != 2:
        raise ValueError(
            f"expected logits of one shape (B, C), got student {tuple(zs.shape)}, teacher {tuple(zt.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    with torch.autocast(zs.device.type, enabled=False):
        log_ps = F.log_softmax(_at_least_float32(zs) / temperature, dim=1)
        log_pt = F.log_softmax(_at_least_float32(zt.detach()) / temperature, dim=1)
        return F.kl_div(log_ps, log_pt, log_target=True, reduction="batchmean") * temperature**2


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
