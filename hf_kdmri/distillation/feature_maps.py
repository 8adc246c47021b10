"""Losses that match feature maps point by point: FitNet's hint, ReviewKD's hierarchical context, attention transfer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.distillation.precision import at_least_float32, teacher_side


def hint_loss(maps_s: Tensor, maps_t: Tensor) -> Tensor:
    """FitNet's hint: mean squared difference of two maps, over all images, channels and positions.

    The student's map goes through a projector (1×1 convolution) first. The mean replaces the paper's ½ ‖·‖², so that
    the value does not grow with the map. Between a convolutional network and a transformer it hurts more often than it
    helps: a control. One image at a time, so gradient accumulation changes nothing.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), eq. 3.

    Args:
        maps_s: projected student maps (B, C, H, W).
        maps_t: teacher maps of the same shape.

    Returns:
        A scalar in squared units of the teacher's features, 0 for equal maps.

    Raises:
        ValueError: shapes differ or are not (B, C, H, W).
    """
    _check_same_shape(maps_s, maps_t)
    with torch.autocast(maps_s.device.type, enabled=False):
        return F.mse_loss(at_least_float32(maps_s), teacher_side(maps_t))


def hcl_loss(maps_s: Tensor, maps_t: Tensor) -> Tensor:
    """ReviewKD's hierarchical context loss: mean squared difference at full size and on pooled grids.

    (MSE_full + ½ MSE_4×4 + ¼ MSE_2×2 + ⅛ MSE_1×1) / (1 + ½ + ¼ + ⅛), where a grid not smaller than the map is left out
    of both sums. Coarse grids carry the global context; halving their weights keeps the detail in charge, and the
    division makes it a mean. One image at a time, so gradient accumulation changes nothing.

    Reference: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044), §3.3; levels and
    weights are those of the published code.

    Args:
        maps_s: student maps after fusion and projection (B, C, H, W).
        maps_t: teacher maps of the same shape.

    Returns:
        A scalar in squared units of the teacher's features, 0 for equal maps.

    Raises:
        ValueError: shapes differ or are not (B, C, H, W).
    """
    _check_same_shape(maps_s, maps_t)
    with torch.autocast(maps_s.device.type, enabled=False):
        maps_s, maps_t = at_least_float32(maps_s), teacher_side(maps_t)
        loss, weight, total = F.mse_loss(maps_s, maps_t), 1.0, 1.0
        for grid in (4, 2, 1):
            if grid >= min(maps_s.shape[2:]):
                continue
            weight /= 2
            total += weight
            pooled = F.mse_loss(F.adaptive_avg_pool2d(maps_s, grid), F.adaptive_avg_pool2d(maps_t, grid))
            loss = loss + weight * pooled
        return loss / total


def attention_transfer_loss(maps_s: Tensor, maps_t: Tensor) -> Tensor:
    """Attention transfer: mean squared difference of the two L2-normalised spatial attention maps.

    A map's attention is the mean over channels of its squares, flattened to P positions and divided by its length. No
    projector is needed, because the channels are gone. Maps of unlike sizes meet on the coarser one by area pooling.
    The mean over P follows the published code; the paper sums. One image at a time, so gradient accumulation changes
    nothing. Blind to which channel is active, and behind training from scratch for unlike pairs in public tables.

    Reference: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), eq. 2, p = 2.

    Args:
        maps_s: student maps (B, C_s, H_s, W_s).
        maps_t: teacher maps (B, C_t, H_t, W_t).

    Returns:
        A scalar without unit, 0 where the attention agrees up to scale, at most 2 / P. An all-zero map has attention 0.

    Raises:
        ValueError: batch sizes differ or shapes are not (B, C, H, W).
    """
    if maps_s.ndim != 4 or maps_t.ndim != 4 or len(maps_s) != len(maps_t):
        raise ValueError(
            "expected feature maps (B, C, H, W) of one batch size, got student "
            f"{tuple(maps_s.shape)}, teacher {tuple(maps_t.shape)}"
        )
    size = (min(maps_s.shape[2], maps_t.shape[2]), min(maps_s.shape[3], maps_t.shape[3]))
    with torch.autocast(maps_s.device.type, enabled=False):
        attention_s = _attention(at_least_float32(maps_s), size)
        return F.mse_loss(attention_s, _attention(teacher_side(maps_t), size))


def _attention(maps: Tensor, size: tuple[int, int]) -> Tensor:
    squares = F.adaptive_avg_pool2d(maps, size).square().mean(1).flatten(1)
    # Inside the root the epsilon bounds the gradient; the squares of a zero map have none of their own.
    return squares / (squares.square().sum(1, keepdim=True) + 1e-12).sqrt()


def _check_same_shape(maps_s: Tensor, maps_t: Tensor) -> None:
    if maps_s.ndim != 4 or maps_s.shape != maps_t.shape:
        raise ValueError(
            f"expected feature maps of one shape (B, C, H, W), got student {tuple(maps_s.shape)}, teacher "
            f"{tuple(maps_t.shape)}; put a projector behind the student and pool both to one size"
        )
