"""Geometry losses: compare relations between positions, which have no channel axis, so any two networks can meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.distillation.kernels import alignment
from hf_kdmri.distillation.precision import at_least_float32, teacher_side

KernelDifference = Literal["squared", "smooth_l1", "kl", "cka"]
KERNEL_TEMPERATURE = 0.07  # of the rows' softmax in "kl"


def spatial_kernel(maps: Tensor, *, grid: int = 7) -> Tensor:
    """Cosine similarity between all positions of one image's feature map.

    The map is area-pooled to a `grid` × `grid` raster first (where the raster is finer, a cell is the mean of the map's
    cells that it touches), and the channel vector at every cell is divided by its length, so the kernel does not see
    the scale of the features nor any orthogonal map of the channels. In this order every cell has length 1 and looks
    like itself; pooled unit vectors would be the shorter, the more mixed the tissue of a cell. Computed in float32; a
    zero vector has similarity 0 to everything and no gradient trouble.

    Args:
        maps: (B, C, H, W).
        grid: cells per side, ≥ 1.

    Returns:
        (B, P, P) with P = grid², symmetric, values in [-1, 1].

    Raises:
        ValueError: another number of axes, no image, or a grid that is no whole number of at least 1.

    Example:
        >>> left_and_right = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # one channel each
        >>> spatial_kernel(left_and_right.expand(1, 2, 2, 2), grid=2)[0].tolist()
        [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """
    check_grid(grid)
    _check_maps([maps])
    with torch.autocast(maps.device.type, enabled=False):
        pooled = F.adaptive_avg_pool2d(at_least_float32(maps), grid)
        vectors = F.normalize(pooled.flatten(2), dim=1, eps=1e-6)
        return vectors.transpose(1, 2) @ vectors


def spatial_similarity_loss(
    maps_s: Tensor,
    maps_t: Tensor,
    *,
    grid: int = 7,
    mask: Tensor | None = None,
    difference: KernelDifference = "squared",
) -> Tensor:
    """Difference between the spatial self-similarity of student and teacher, mean over images and pairs.

    "Which tissue looks like which" on one slice: ‖K_s − K_t‖² / P² per image, K = `spatial_kernel`. It depends on one
    image at a time, so not on batch size, process count or gradient accumulation. `fused_spatial_similarity_loss` has
    the other differences.

    References: Liu et al., "Structured Knowledge Distillation", CVPR 2019 (pair-wise term, eq. 2); Tung & Mori,
    "Similarity-Preserving Knowledge Distillation", ICCV 2019, applied over space.

    Args:
        maps_s: student maps (B, C_s, H_s, W_s).
        maps_t: teacher maps (B, C_t, H_t, W_t); channels and sizes may differ from the student's.
        grid: common raster, cells per side.
        mask: optional weights of positions (B, 1, H, W) ≥ 0, area-pooled to the raster; a pair counts with the product
            of its positions' weights. `lesion_weights` makes them from a tumour mask.
        difference: "squared", "smooth_l1", "kl" or "cka"; see `fused_spatial_similarity_loss`.

    Returns:
        A scalar without unit, 0 where the kernels agree.

    Raises:
        ValueError: as `fused_spatial_similarity_loss`.

    Example:
        >>> halves = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]).expand(1, 2, 2, 2)  # left and right look unlike
        >>> round(spatial_similarity_loss(halves, torch.ones(1, 5, 4, 4), grid=2).item(), 4)  # 8 of 16 pairs differ
        0.5
    """
    return fused_spatial_similarity_loss([maps_s], [maps_t], grid=grid, mask=mask, difference=difference)


def fused_spatial_similarity_loss(
    stages_s: Sequence[Tensor],
    stages_t: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    grid: int = 7,
    mask: Tensor | None = None,
    difference: KernelDifference = "squared",
) -> Tensor:
    """Difference between the spatial kernels fused over stages (multi-scale geometric fusion).

    The kernels of the stages are averaged with fixed weights. That average equals the kernel of the concatenation of
    all stages' unit vectors, each scaled by the square root of its weight: the stages are fused exactly, and nothing
    is learned on the teacher's side that could collapse. Both sides may have their own number of stages.

    What is taken between the two kernels of an image:

    - "squared": (K_s − K_t)², mean over pairs of positions;
    - "smooth_l1": Huber's function with threshold 1, half the square for entries less than 1 apart;
    - "kl": KL(softmax(K_t / τ) ‖ softmax(K_s / τ)) of each row, τ = .07, diagonal masked, mean over rows: which
      positions look most alike counts, how unlike the rest are does not. With a mask, both softmaxes are weighted too;
    - "cka": 1 − unbiased CKA (`alignment`): only the pattern counts, not its contrast. It takes no mask.

    Args:
        stages_s: student maps, each (B, C_i, H_i, W_i).
        stages_t: teacher maps, likewise; other channels, sizes and, with equal weights, another number of stages.
        weights: one weight ≥ 0 per stage, normalised to sum 1, the same for both sides; default equal.
        grid: common raster, cells per side.
        mask: optional weights of positions (B, 1, H, W) ≥ 0; see `spatial_similarity_loss`.
        difference: one of the four above. "kl" and "cka" need a grid of at least 2.

    Returns:
        A scalar, in nats for "kl" and otherwise without unit, 0 where the fused kernels agree.

    Raises:
        ValueError: no stages, unequal batch sizes, weights that do not fit, a mask of another shape, or a difference
            that is unknown or impossible with this grid or mask.

    Example:
        >>> halves, plain = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]).expand(1, 2, 2, 2), torch.ones(1, 3, 2, 2)
        >>> round(fused_spatial_similarity_loss([halves, plain], [plain], grid=2).item(), 4)  # those differ by ½
        0.125
    """
    check_grid(grid)
    check_difference(difference, grid, masked=mask is not None)
    stages_s, stages_t = _check_maps(stages_s), _check_maps(stages_t)
    if len(stages_s[0]) != len(stages_t[0]):
        raise ValueError(f"batch sizes differ: student {len(stages_s[0])}, teacher {len(stages_t[0])}")
    # On another device the question would wait for it.
    if mask is not None and mask.device.type == "cpu" and mask.numel() and mask.min() < 0:
        raise ValueError(f"the mask has weights down to {mask.min().item():.3g}; weights must be at least 0")
    kernel_s = fused_spatial_kernel(stages_s, weights=weights, grid=grid)
    with torch.no_grad():
        kernel_t = fused_spatial_kernel([maps.detach() for maps in stages_t], weights=weights, grid=grid)
    return kernel_difference(kernel_s, kernel_t, mask=mask, difference=difference)


def fused_spatial_kernel(stages: Sequence[Tensor], *, weights: Sequence[float] | None = None, grid: int = 7) -> Tensor:
    """Weighted mean of the stages' spatial kernels: one side of `fused_spatial_similarity_loss`.

    Args:
        stages: maps (B, C_i, H_i, W_i).
        weights: one weight ≥ 0 per stage, normalised to sum 1; default equal.
        grid: common raster, cells per side.

    Returns:
        (B, P, P) with P = grid², symmetric, values in [-1, 1], float32 or float64.

    Raises:
        ValueError: no stages, or weights that do not fit.
    """
    stages = _check_maps(stages)
    shares = _shares(weights, len(stages))
    kernels = [spatial_kernel(maps, grid=grid) for maps in stages]
    return torch.stack([kernel * share for kernel, share in zip(kernels, shares, strict=True)]).sum(0)


def kernel_difference(
    kernel_s: Tensor, kernel_t: Tensor, *, mask: Tensor | None = None, difference: KernelDifference = "squared"
) -> Tensor:
    """Difference between two fused spatial kernels; the differences are told at `fused_spatial_similarity_loss`.

    Args:
        kernel_s: student (B, P, P), P a square number.
        kernel_t: teacher (B, P, P); it may be in half precision, as a teacher cache keeps it.
        mask: optional weights of positions (B, 1, H, W) ≥ 0.
        difference: one of four.

    Returns:
        A scalar.

    Raises:
        ValueError: kernels or mask of another shape, or a difference that is unknown or impossible with them.
    """
    if kernel_s.shape != kernel_t.shape or kernel_s.ndim != 3:
        raise ValueError(
            f"expected two kernels (B, P, P), got student {tuple(kernel_s.shape)}, teacher {tuple(kernel_t.shape)}"
        )
    grid = math.isqrt(kernel_s.shape[-1])
    check_difference(difference, grid, masked=mask is not None)
    kernel_t = teacher_side(kernel_t).to(kernel_s.dtype)
    position = _position_weights(mask, kernel_s, grid)
    if difference == "cka":
        return (1 - alignment(kernel_s, kernel_t)).mean()
    if difference == "kl":
        return _weighted_mean(_row_divergence(kernel_s, kernel_t, position), position)
    penalty = F.mse_loss if difference == "squared" else F.smooth_l1_loss
    pair = position[:, :, None] * position[:, None, :]
    return _weighted_mean(penalty(kernel_s, kernel_t, reduction="none").flatten(1), pair.flatten(1))


def check_grid(grid: int) -> None:
    """Refuse a raster that has no cells.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if not isinstance(grid, int) or isinstance(grid, bool) or grid < 1:
        raise ValueError(f"grid is {grid!r}; it must be a whole number of cells per side, at least 1")


def check_weights(name: str, weights: Sequence[float]) -> None:
    """Refuse weights of stages that have no mean.

    Raises:
        ValueError: one is negative or not finite, or all are 0.
    """
    if not (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
        raise ValueError(f"{name} is {weights}; give finite numbers of at least 0, not all of them 0")


def check_difference(difference: str, grid: int, *, masked: bool) -> None:
    """Refuse a difference of kernels that is unknown, or impossible with this grid or mask.

    Raises:
        ValueError: what is wrong and what would do.
    """
    if difference not in get_args(KernelDifference):
        raise ValueError(f"difference is {difference!r}; it must be one of {', '.join(get_args(KernelDifference))}")
    if difference in ("kl", "cka") and grid < 2:
        raise ValueError(f"difference {difference!r} compares positions and needs a grid of at least 2, got {grid}")
    if difference == "cka" and masked:
        raise ValueError('difference "cka" takes no mask: weights would make its estimate biased; use "squared"')


def fused_embedding(stages: Sequence[Tensor], *, weights: Sequence[float] | None = None) -> Tensor:
    """One vector per image from all stages: the sample side of the fused spatial kernel.

    The channel vector at every position (of the map as it is, not of a raster: there is nothing to align here) is
    divided by its length, averaged over positions, and the stages' averages are joined, each times the square root of
    its weight. The product of two images' vectors is then the mean cosine between a position of the one and a position
    of the other, averaged over stages with the same weights as in `fused_spatial_similarity_loss`. For
    `rkd_distance_loss`, `rkd_angle_loss` and the other losses on samples.

    Args:
        stages: maps (B, C_i, H_i, W_i).
        weights: one weight ≥ 0 per stage, normalised to sum 1; default equal.

    Returns:
        (B, Σ C_i), of length at most 1, in float32 or float64. It keeps its gradient; losses detach the teacher's.

    Raises:
        ValueError: no stages, unequal batch sizes, maps of another shape, or weights that do not fit.
    """
    stages = _check_maps(stages)
    shares = _shares(weights, len(stages))
    with torch.autocast(stages[0].device.type, enabled=False):
        pooled = [_mean_direction(at_least_float32(maps)) for maps in stages]
        return torch.cat([vector * share**0.5 for vector, share in zip(pooled, shares, strict=True)], dim=1)


def _mean_direction(maps: Tensor) -> Tensor:
    # One product with the inverse lengths: the normalised map itself, as large as the map, is never made.
    vectors = maps.permute(0, 2, 3, 1).flatten(1, 2)
    inverse = torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_min(1e-6).reciprocal() / vectors.shape[1]
    return torch.bmm(inverse.mT, vectors)[:, 0]


def _position_weights(mask: Tensor | None, kernel: Tensor, grid: int) -> Tensor:
    if mask is None:
        return kernel.new_ones(kernel.shape[:2])
    if mask.ndim != 4 or mask.shape[:2] != (len(kernel), 1):
        raise ValueError(
            f"expected a mask of shape ({len(kernel)}, 1, H, W), one for each image, got {tuple(mask.shape)}; "
            "mask[:, None] adds the axis of one channel"
        )
    pooled = F.adaptive_avg_pool2d(mask.to(kernel.dtype), grid).flatten(1)
    mean = pooled.mean(1, keepdim=True)
    return pooled / torch.where(mean > 0, mean, 1.0)  # so that only ratios count, however small the weights


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    # An image whose mask is empty has nothing to compare and counts as 0, not as 0 / 0.
    return ((values * weights).sum(1) / weights.sum(1).clamp_min(1e-12)).mean()


def _row_divergence(kernel_s: Tensor, kernel_t: Tensor, position: Tensor) -> Tensor:
    # Weights enter the softmax as logarithms. The smallest weight is far below e^(-2 / τ), so it counts as none, and
    # unlike an infinite logarithm it leaves a row whose weights are all 0 defined.
    log_weight = position.clamp_min(1e-30).log()[:, None, :]
    own = torch.eye(kernel_s.shape[-1], dtype=torch.bool, device=kernel_s.device)

    def log_rows(kernel: Tensor) -> Tensor:
        return (kernel / KERNEL_TEMPERATURE + log_weight).masked_fill(own, -1e4).log_softmax(-1)

    return F.kl_div(log_rows(kernel_s), log_rows(kernel_t), log_target=True, reduction="none").sum(-1)


def _check_maps(stages: Sequence[Tensor]) -> list[Tensor]:
    """The stages as a list, or a ValueError that says what they are instead."""
    if isinstance(stages, Tensor):
        raise ValueError(f"expected a list of stage maps, got one tensor {tuple(stages.shape)}; write [maps]")
    stages = list(stages)
    if not stages:
        raise ValueError("at least one stage map is needed on each side")
    for maps in stages:
        if maps.ndim != 4:
            raise ValueError(
                f"expected feature maps of shape (B, C, H, W), got {tuple(maps.shape)}; a transformer's tokens must be "
                "put back in their places first (timm: forward_intermediates(…, output_fmt='NCHW'))"
            )
        if len(maps) == 0:
            raise ValueError(f"the batch is empty: a feature map has the shape {tuple(maps.shape)}")
    if len({len(maps) for maps in stages}) != 1:
        raise ValueError(f"batch sizes of the stage maps differ: {[len(maps) for maps in stages]}")
    return stages


def _shares(weights: Sequence[float] | None, stages: int) -> list[float]:
    shares = [1.0] * stages if weights is None else [float(weight) for weight in weights]
    if len(shares) != stages:
        raise ValueError(
            f"{stages} stages need as many weights, got {len(shares)}: {shares}; where student and teacher have "
            "unequal numbers of stages, leave the weights out, so that each side's count equally"
        )
    check_weights("weights", shares)
    return [share / sum(shares) for share in shares]
