"""Exits: a small branch from each of the student's stages to logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hf_kdmri.distillation.stage_maps import GROUPS, check_exit, check_stages
from hf_kdmri.models import start_near_zero


class StageExits(nn.Module):
    """OFA's branches: each stage of the student to logits, where the two architectures meet without a trace of either.

    A branch is a 1×1 convolution to one width, then a block for each deeper stage (a depthwise 3×3 with stride 2 and a
    pointwise convolution), then the mean over the positions and a linear layer. Compare the logits with the teacher's
    by `ofa_loss`.

    Lighter than the published code, whose branches double their channels at each block, end at the wider of the two
    networks' features with batch normalisation, and for transformers use patch merging, attention blocks and the class
    token. Here one form serves maps of both, with group normalisation, so an image's logits depend on no other image.
    width · Σ C_i and (width² + 11 · width) per block: 0.20 M parameters for a MobileNetV4-small's strides 8 to 32 (64,
    96 and 960 channels) at the default width.

    Reference: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023 (arXiv 2310.19444).

    Args:
        channels: channels of the student's stages, finest first.
        num_classes: K.
        width: channels within the branches, a multiple of 8.

    Raises:
        ValueError: no stages, fewer than two classes, or a width that is not a multiple of 8.

    Example:
        >>> import torch
        >>> exits = StageExits([8, 16], num_classes=3, width=16)
        >>> logits = exits([torch.randn(2, 8, 14, 14), torch.randn(2, 16, 7, 7)])
        >>> [tuple(of_stage.shape) for of_stage in logits]
        [(2, 3), (2, 3)]
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, width: int = 128) -> None:
        super().__init__()
        check_exit(channels, num_classes, width)
        self.channels = list(channels)
        self.branches = nn.ModuleList(
            _branch(count, width, num_classes, blocks=len(channels) - 1 - index) for index, count in enumerate(channels)
        )

    def forward(self, stages_s: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Classify from each stage.

        Args:
            stages_s: student maps (B, C_i, H_i, W_i), finest first.

        Returns:
            Logits (B, K) of each stage, finest first.

        Raises:
            ValueError: another number of stages or channels than the module was built for.
        """
        check_stages(stages_s, self.channels, side="student")
        return tuple(branch(maps) for branch, maps in zip(self.branches, stages_s, strict=True))


def _branch(channels: int, width: int, num_classes: int, *, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel_size=1, bias=False),
        nn.GroupNorm(GROUPS, width),
        nn.GELU(),
    ]
    for _ in range(blocks):
        layers += [
            nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, kernel_size=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.GELU(),
        ]
    classifier = nn.Linear(width, num_classes)
    start_near_zero(classifier)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
