"""Weights of positions from a tumour mask: geometry inside the lesion, at its border, and outside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.models.preprocessing import per_channel


def lesion_weights(
    mask: Tensor, *, inside: float = 1.0, border: float = 1.0, outside: float = 1.0, border_width: int = 4
) -> Tensor:
    """Weights that give the lesion, its border and the rest fixed shares of the whole, whatever the lesion's size.

    A tumour covers 1.3 % of a slice (median), so without weights nearly all pairs of positions lie outside it. Here
    each region r gets the share s_r / Σ s, spread evenly over its n_r pixels: w = H W · s_r / (n_r Σ s). Passed as
    `mask=` to `spatial_similarity_loss`, a pair counts with the product of its weights, so (inside, outside) pairs,
    the relations across the border, count as much as those within.

    A region that is missing (no inside in a lesion thinner than two borders; no lesion at all) leaves its share to the
    others, so an empty mask gives weight 1 everywhere.

    Args:
        mask: (B, 1, H, W), true or above 0.5 in the tumour.
        inside: share of the pixels of the tumour further than `border_width` from its edge.
        border: share of the pixels within `border_width` of the edge, on either side.
        outside: share of all others; above 0, because a slice without a tumour is all outside.
        border_width: pixels of the mask, ≥ 1. At 224 pixels the median tumour is 29 wide, the smallest 5 % under 13.

    Returns:
        (B, 1, H, W) float32, ≥ 0, mean 1 per image.

    Raises:
        ValueError: a mask of another shape, or a number out of range.

    Example:
        >>> import torch
        >>> mask = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).view(1, 1, 1, 8)
        >>> weights = lesion_weights(mask, outside=2, border_width=1)  # 3 pixels inside, 2 at the border, 3 outside
        >>> [round(weight, 2) for weight in weights.flatten().tolist()]
        [0.67, 0.67, 0.67, 1.0, 1.0, 1.33, 1.33, 1.33]
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"expected a tumour mask of shape (B, 1, H, W), got {tuple(mask.shape)}")
    if not (inside >= 0 and border >= 0 and outside > 0):
        raise ValueError(f"shares must be at least 0 and outside above 0, got {inside}, {border}, {outside}")
    if border_width < 1:
        raise ValueError(f"border_width is {border_width}; it must be at least 1 pixel")
    tumour = (mask > 0.5).float()
    # A tumour that touches the picture's edge has no border there: max pooling pads with minus infinity.
    size = 2 * border_width + 1
    grown = F.max_pool2d(tumour, size, stride=1, padding=border_width)
    shrunk = -F.max_pool2d(-tumour, size, stride=1, padding=border_width)
    regions = torch.cat([shrunk, grown - shrunk, 1 - grown], dim=1)
    counts = regions.sum((2, 3), keepdim=True)
    shares = per_channel((inside, border, outside), counts) * (counts > 0)
    # A slice that is all tumour has no outside; with the other shares at 0 nothing is left to weigh it by.
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
    return (regions * shares / counts.clamp_min(1)).sum(1, keepdim=True) * mask[0, 0].numel()
