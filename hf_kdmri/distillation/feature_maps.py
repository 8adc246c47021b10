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
        ValueError: shapes differ, are not (B, C, H, W), or hold no image.

    Example:
        >>> hint_loss(torch.zeros(1, 8, 7, 7), torch.full((1, 8, 7, 7), 2.0)).item()
        4.0
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
    weights are those of the published code. It chooses the grids by the height alone, so oblong maps differ: here the
    shorter side decides.

    Args:
        maps_s: student maps after fusion and projection (B, C, H, W).
        maps_t: teacher maps of the same shape.

    Returns:
        A scalar in squared units of the teacher's features, 0 for equal maps.

    Raises:
        ValueError: shapes differ, are not (B, C, H, W), or hold no image.

    Example:
        >>> checkerboard = torch.ones(1, 1, 8, 8)
        >>> checkerboard[..., ::2, 1::2] = checkerboard[..., 1::2, ::2] = -1  # the pooled grids see nothing of it
        >>> round(hcl_loss(checkerboard, torch.zeros(1, 1, 8, 8)).item(), 4), round(1 / 1.875, 4)
        (0.5333, 0.5333)
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
    The mean square over P is that of the published code; the paper has the length of the difference, not squared. One
    image at a time, so gradient accumulation changes nothing. Blind to which channel is active, and behind training
    from scratch for unlike pairs in public tables.

    Reference: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), eq. 2, with
    the map F²_sum of §3.1.

    Args:
        maps_s: student maps (B, C_s, H_s, W_s).
        maps_t: teacher maps (B, C_t, H_t, W_t).

    Returns:
        A scalar without unit, 0 where the attention agrees up to scale, at most 2 / P. An all-zero map has attention 0.

    Raises:
        ValueError: batch sizes differ, there is no image, or shapes are not (B, C, H, W).

    Example:
        >>> left = torch.tensor([[[[1.0, 0.0]]]])
        >>> attention_transfer_loss(left, 3 * left).item(), attention_transfer_loss(left, left.flip(3)).item()
        (0.0, 1.0)
    """
    if maps_s.ndim != 4 or maps_t.ndim != 4 or len(maps_s) != len(maps_t) or len(maps_s) == 0:
        raise ValueError(
            "expected feature maps (B, C, H, W) of one batch size with an image, got student "
            f"{tuple(maps_s.shape)}, teacher {tuple(maps_t.shape)}"
        )
    size = (min(maps_s.shape[2], maps_t.shape[2]), min(maps_s.shape[3], maps_t.shape[3]))
    with torch.autocast(maps_s.device.type, enabled=False):
        attention_s = _attention(at_least_float32(maps_s), size)
        return F.mse_loss(attention_s, _attention(teacher_side(maps_t), size))


def _attention(maps: Tensor, size: tuple[int, int]) -> Tensor:
    pooled = F.adaptive_avg_pool2d(maps, size)
    # The result does not see the scale, so neither does the gradient where the scale is taken for a constant; and the
    # fourth powers below keep their digits for features of any size.
    largest = pooled.detach().abs().amax((1, 2, 3), keepdim=True)
    squares = (pooled / torch.where(largest > 0, largest, 1.0)).square().mean(1).flatten(1)
    # Inside the root the epsilon bounds the gradient; the squares of a zero map have none of their own.
    return squares / (squares.square().sum(1, keepdim=True) + 1e-12).sqrt()


def _check_same_shape(maps_s: Tensor, maps_t: Tensor) -> None:
    if maps_s.ndim != 4 or maps_s.shape != maps_t.shape or len(maps_s) == 0:
        raise ValueError(
            "expected feature maps of one shape (B, C, H, W) with an image, got student "
            f"{tuple(maps_s.shape)}, teacher {tuple(maps_t.shape)}; put a projector behind the student and pool both "
            "to one size"
        )
