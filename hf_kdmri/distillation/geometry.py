"""Geometry losses: compare relations between positions, which have no channel axis, so any two networks can meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def spatial_kernel(maps: Tensor, *, grid: int = 7) -> Tensor:
    """Cosine similarity between all positions of one image's feature map.

    The map is area-pooled to a `grid` × `grid` raster first (a map coarser than the raster repeats its cells), and the
    channel vector at every cell is divided by its length, so the kernel does not see the scale of the features nor any
    orthogonal map of the channels. Computed in float32; a zero vector has similarity 0 to everything and no gradient
    trouble.

    Args:
        maps: (B, C, H, W).
        grid: cells per side.

    Returns:
        (B, P, P) with P = grid², symmetric, values in [-1, 1].
    """
    if maps.ndim != 4:
        raise ValueError(f"expected feature maps of shape (B, C, H, W), got {tuple(maps.shape)}")
    with torch.autocast(maps.device.type, enabled=False):
        pooled = F.adaptive_avg_pool2d(maps if maps.dtype == torch.float64 else maps.float(), grid)
        vectors = F.normalize(pooled.flatten(2), dim=1, eps=1e-6)
        return vectors.transpose(1, 2) @ vectors


def spatial_similarity_loss(maps_s: Tensor, maps_t: Tensor, *, grid: int = 7, mask: Tensor | None = None) -> Tensor:
    """Squared difference between the spatial self-similarity of student and teacher, mean over images and pairs.

    "Which tissue looks like which" on one slice: ‖K_s − K_t‖² / P² per image, K = `spatial_kernel`. It depends on one
    image at a time, so not on batch size, process count or gradient accumulation.

    References: Liu et al., "Structured Knowledge Distillation", CVPR 2019 (pair-wise term, eq. 2); Tung & Mori,
    "Similarity-Preserving Knowledge Distillation", ICCV 2019, applied over space.

    Args:
        maps_s: student maps (B, C_s, H_s, W_s).
        maps_t: teacher maps (B, C_t, H_t, W_t); channels and sizes may differ from the student's.
        grid: common raster, cells per side.
        mask: optional weights of positions (B, 1, H, W) ≥ 0, area-pooled to the raster; a pair counts with the product
            of its positions' weights.

    Returns:
        A scalar without unit, 0 where the kernels agree.
    """
    return fused_spatial_similarity_loss([maps_s], [maps_t], grid=grid, mask=mask)


def fused_spatial_similarity_loss(
    stages_s: Sequence[Tensor],
    stages_t: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    grid: int = 7,
    mask: Tensor | None = None,
) -> Tensor:
    """Squared difference between the spatial kernels fused over stages (multi-scale geometric fusion).

    The kernels of the stages are averaged with fixed weights. That average equals the kernel of the concatenation of
    all stages' unit vectors, each scaled by the square root of its weight: the stages are fused exactly, and nothing
    is learned on the teacher's side that could collapse. Both sides may have their own number of stages.

    Args:
        stages_s: student maps, each (B, C_i, H_i, W_i).
        stages_t: teacher maps, likewise; other channels, sizes and, with equal weights, another number of stages.
        weights: one weight ≥ 0 per stage, normalised to sum 1; default equal.
        grid: common raster, cells per side.
        mask: optional weights of positions (B, 1, H, W) ≥ 0; see `spatial_similarity_loss`.

    Returns:
        A scalar without unit, 0 where the fused kernels agree.

    Raises:
        ValueError: no stages, unequal batch sizes, weights that do not fit, or a mask of another shape.
    """
    if not stages_s or not stages_t:
        raise ValueError("at least one stage map is needed on each side")
    if len({maps.shape[0] for maps in (*stages_s, *stages_t)}) != 1:
        raise ValueError(
            f"batch sizes differ: student {[s.shape[0] for s in stages_s]}, teacher {[t.shape[0] for t in stages_t]}"
        )
    kernel_s = _fused_kernel(stages_s, weights, grid)
    with torch.no_grad():
        kernel_t = _fused_kernel([maps.detach() for maps in stages_t], weights, grid)
    squared = (kernel_s - kernel_t).square()
    if mask is None:
        return squared.mean()
    if mask.ndim != 4 or mask.shape[:2] != (len(squared), 1):
        raise ValueError(f"expected a mask of shape ({len(squared)}, 1, H, W), got {tuple(mask.shape)}")
    position = F.adaptive_avg_pool2d(mask.to(squared.dtype), grid).flatten(1)
    pair = position[:, :, None] * position[:, None, :]
    # An image whose mask is empty has nothing to compare and counts as 0, not as 0 / 0.
    return (squared * pair).sum((1, 2)).div(pair.sum((1, 2)).clamp_min(1e-12)).mean()


def _fused_kernel(stages: Sequence[Tensor], weights: Sequence[float] | None, grid: int) -> Tensor:
    if weights is None:
        weights = [1.0] * len(stages)
    if len(weights) != len(stages) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"{len(stages)} stages need as many weights ≥ 0 that are not all 0, got {list(weights)}")
    total = sum(weights)
    kernels = [spatial_kernel(maps, grid=grid) for maps in stages]
    return torch.stack([kernel * (weight / total) for kernel, weight in zip(kernels, weights, strict=True)]).sum(0)
