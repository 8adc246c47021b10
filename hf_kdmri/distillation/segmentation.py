"""Drawing the tumour as a second task: a head on the stages that is dropped after training, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri.distillation.precision import at_least_float32
from hf_kdmri.distillation.stage_maps import GROUPS, check_channels, check_stages, check_width, resize_to_raster

_SMOOTHING = 1.0  # positions: keeps the Dice loss of an empty mask finite, and at 0 where nothing is drawn


class TumourMaskHead(nn.Module):
    """Where the tumour is, from all stages: a feature pyramid that ends in one logit per position of the finest stage.

    Each stage goes through a 1×1 convolution to one width; from the deepest on, the sum so far is upsampled and added
    to the next finer stage (bilinearly); a 3×3 convolution and a 1×1 convolution read the mask off. Group
    normalisation, so an image's mask depends on no other image. width · Σ C_i + 9 · width² parameters and a few more.

    Reference: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144), for the
    top-down path.

    Args:
        channels: channels of the stages, finest first.
        width: channels of the pyramid, a multiple of 8.

    Raises:
        ValueError: no stages, or a width that is not a multiple of 8.

    Example:
        >>> head = TumourMaskHead([8, 16], width=16)
        >>> head([torch.randn(2, 8, 14, 14), torch.randn(2, 16, 7, 7)]).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        check_channels(channels, side="student")
        check_width(width)
        self.channels = list(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, kernel_size=1) for count in channels)
        self.output = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, 1, kernel_size=1),
        )

    def forward(self, stages_s: Sequence[Tensor]) -> Tensor:
        """Draw the tumour.

        Args:
            stages_s: maps (B, C_i, H_i, W_i), finest first.

        Returns:
            Logits (B, 1, H_0, W_0), above 0 in the tumour.

        Raises:
            ValueError: another number of stages or channels than the module was built for.
        """
        check_stages(stages_s, self.channels, side="student")
        laterals = [layer(maps) for layer, maps in zip(self.laterals, stages_s, strict=True)]
        fused = laterals[-1]
        for lateral in reversed(laterals[:-1]):
            fused = lateral + resize_to_raster(fused, (lateral.shape[-2], lateral.shape[-1]))
        return self.output(fused)


def tumour_mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss of a drawn mask.

    The true mask is brought to the raster of the logits by the mean of each cell, so a cell that is half tumour has the
    target one half. With p = sigmoid(z) and target t, per image: mean of the cross-entropy over the positions, plus
    1 − (2 Σ p t + 1) / (Σ p² + Σ t² + 1). The Dice loss counts every tumour alike, whatever its size; the squares in
    its denominator make p = t its minimum for targets between 0 and 1, too.

    Reference: Milletari et al., "V-Net", 3DV 2016 (arXiv 1606.04797), eq. for D, with 1 added above and below.

    Args:
        logits: (B, 1, H, W).
        masks: (B, 1, H', W') tumour masks, uint8 with 255 inside, as views carry them; at least as fine as the logits.
            Values between, of mixed views, are parts of a tumour.

    Returns:
        Mean over the images, a scalar, at least 0.

    Raises:
        ValueError: shapes that do not belong together.

    Example:
        >>> masks = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> masks[..., :4, :4] = 255
        >>> drawn = torch.full((1, 1, 2, 2), -20.0)
        >>> round(tumour_mask_loss(drawn, masks).item(), 3)  # 20 / 4 and 1 − 1 / 2
        5.5
        >>> drawn[..., 0, 0] = 20
        >>> round(tumour_mask_loss(drawn, masks).item(), 3)
        0.0
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or masks.ndim != 4 or masks.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"expected logits (B, 1, H, W) and as many masks (B, 1, H', W'), got {tuple(logits.shape)} and "
            f"{tuple(masks.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        target = F.adaptive_avg_pool2d(masks.to(logits.dtype) / 255, (logits.shape[-2], logits.shape[-1]))
        drawn = logits.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
        overlap = 2 * (drawn * target).sum((1, 2, 3)) + _SMOOTHING
        dice = overlap / (drawn.square().sum((1, 2, 3)) + target.square().sum((1, 2, 3)) + _SMOOTHING)
        return cross_entropy + (1 - dice).mean()
