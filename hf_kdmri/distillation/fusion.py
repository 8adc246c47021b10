"""Learnable fusion of the student's stages, from deep to shallow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri.distillation.stage_maps import GROUPS, check_channels, check_exit, check_stages, resize_to_raster
from hf_kdmri.models import start_near_zero


class AttentionBasedFusion(nn.Module):
    """ABF: one stage of the student joined with what was fused from the deeper ones.

    The stage goes through a 1×1 convolution to `mid_channels`; the deeper fused map is upsampled to its size (nearest);
    a 1×1 convolution with a sigmoid on both gives two maps of weights, one for each, by which they are added. A 3×3
    convolution brings the sum to the teacher's channels. C · M + 9 · M · C_t + 2 (M + C_t) parameters with M the mid
    channels, and 4 M + 2 for the weights.

    Batch normalisation follows both convolutions, as in the paper: while training, the result depends on the batch, so
    two processes with half a batch each do not equal one with the whole, and torch refuses one image with 1×1 maps.

    Reference: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044).

    Args:
        student_channels: C of the student's stage.
        mid_channels: M of the fused map.
        teacher_channels: C_t of the teacher's stage.
        fuse: False for the deepest stage, which has nothing to be joined with.
    """

    def __init__(self, student_channels: int, mid_channels: int, teacher_channels: int, *, fuse: bool = True) -> None:
        super().__init__()
        lateral = nn.Conv2d(student_channels, mid_channels, kernel_size=1, bias=False)
        output = nn.Conv2d(mid_channels, teacher_channels, kernel_size=3, padding=1, bias=False)
        for convolution in (lateral, output):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.lateral = nn.Sequential(lateral, nn.BatchNorm2d(mid_channels))
        self.output = nn.Sequential(output, nn.BatchNorm2d(teacher_channels))
        self.gate = nn.Conv2d(2 * mid_channels, 2, kernel_size=1) if fuse else None

    def forward(
        self, stage: Tensor, deeper: Tensor | None = None, *, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse one stage.

        Args:
            stage: (B, C, H, W).
            deeper: fused map of the next deeper stage (B, M, H', W'); None for the deepest.
            size: raster of the output; default (H, W).

        Returns:
            The output (B, C_t, *size) and the fused map (B, M, H, W), which goes on to the next shallower stage.

        Raises:
            ValueError: a deeper map is missing, or given to the deepest stage.
        """
        if (deeper is None) != (self.gate is None):
            raise ValueError(
                "only the deepest stage is built with fuse=False and called without a deeper map; this one was built "
                f"with fuse={self.gate is not None} and called {'without' if deeper is None else 'with'} one"
            )
        fused = self.lateral(stage)
        if self.gate is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=fused.shape[-2:], mode="nearest")
            fused = _gated_sum(self.gate, fused, deeper)
        return self.output(fused if size is None else resize_to_raster(fused, size)), fused


class ReviewFusion(nn.Module):
    """ReviewKD: every stage of the teacher is met by a fusion of the student's stages of this depth and deeper.

    Compare the maps it returns with the teacher's stages by the hierarchical context loss. As in the published code the
    student's side is brought to the teacher's raster, before the last convolution: by the mean of each cell where that
    is coarser and bilinearly where it is finer, while the published code takes the nearest cell. It also adds the
    globally pooled features as a deepest stage of 1×1; here only the stages given are used.

    It has batch statistics: see `AttentionBasedFusion`.

    Reference: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044).

    Args:
        student_channels: channels of the student's stages, finest first.
        teacher_channels: channels of as many stages of the teacher.
        mid_channels: channels of the fused maps; 256 is the published code's for MobileNet on ImageNet.

    Raises:
        ValueError: no stages, unequal numbers of them, or fewer than one channel.

    Example:
        >>> fusion = ReviewFusion([8, 16], [12, 24], mid_channels=8)
        >>> stages = [torch.randn(2, 8, 14, 14), torch.randn(2, 16, 7, 7)]
        >>> [tuple(maps.shape) for maps in fusion(stages, sizes=[(28, 28), (14, 14)])]
        [(2, 12, 28, 28), (2, 24, 14, 14)]
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, mid_channels: int = 256
    ) -> None:
        super().__init__()
        check_channels(student_channels, side="student")
        check_channels(teacher_channels, side="teacher")
        if len(student_channels) != len(teacher_channels):
            raise ValueError(
                f"{len(student_channels)} student stages cannot meet {len(teacher_channels)} teacher stages; "
                f"give both models one num_scales"
            )
        if mid_channels < 1:
            raise ValueError(f"mid_channels is {mid_channels}; it must be at least 1")
        self.student_channels = list(student_channels)
        deepest = len(student_channels) - 1
        self.blocks = nn.ModuleList(
            AttentionBasedFusion(of_student, mid_channels, of_teacher, fuse=index < deepest)
            for index, (of_student, of_teacher) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, stages_s: Sequence[Tensor], *, sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Fuse the student's stages from the deepest to the finest.

        Args:
            stages_s: student maps (B, C_i, H_i, W_i), finest first.
            sizes: rasters of the teacher's stages, finest first; default those of the student's.

        Returns:
            A map per stage, finest first, each with the channels of the teacher's stage and the raster asked for.

        Raises:
            ValueError: another number of stages, channels or sizes than the module was built for.
        """
        check_stages(stages_s, self.student_channels, side="student")
        if sizes is None:
            sizes = [(maps.shape[-2], maps.shape[-1]) for maps in stages_s]
        if len(sizes) != len(stages_s):
            raise ValueError(f"{len(stages_s)} stages need as many sizes (H, W), got {list(sizes)}")
        outputs: list[Tensor] = []
        fused: Tensor | None = None
        for block, stage, size in reversed(list(zip(self.blocks, stages_s, sizes, strict=True))):
            output, fused = block(stage, fused, size=tuple(size))
            outputs.insert(0, output)
        return outputs


class TopDownFusionExit(nn.Module):
    """Logits from all stages of the student, fused from deep to shallow: an exit for deep supervision.

    Each stage goes through a 1×1 convolution to one width. From the deepest on, the fused map is upsampled and added to
    the next finer stage, both weighted at every position by a sigmoid gate as in ReviewKD's ABF; a depthwise 3×3 and a
    pointwise convolution smooth the sum. The fused maps are averaged over their positions, one vector per scale, joined
    and classified. Train the logits by cross-entropy and the teacher's logits: the gradient reaches every stage.

    Group normalisation, so an image's logits depend on no other image, nor on the number of processes. The gates start
    at one half. width · Σ C_i and about (width² + 18 · width) per stage: 0.09 M parameters for a MobileNetV4-small's
    strides 8 to 32 (64, 96 and 960 channels) at the default width. The design is ours.

    Related: Chen et al., CVPR 2021 (arXiv 2104.09044), for the gates; Lin et al., "Feature Pyramid Networks", CVPR 2017
    (arXiv 1612.03144), for the top-down path; Lee et al., "Deeply-Supervised Nets", AISTATS 2015.

    Args:
        channels: channels of the student's stages, finest first.
        num_classes: K.
        width: channels of the fused maps, a multiple of 8.

    Raises:
        ValueError: no stages, fewer than two classes, or a width that is not a multiple of 8.

    Example:
        >>> exit_ = TopDownFusionExit([8, 16], num_classes=3, width=16)
        >>> exit_([torch.randn(2, 8, 14, 14), torch.randn(2, 16, 7, 7)]).shape
        torch.Size([2, 3])
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, width: int = 64) -> None:
        super().__init__()
        check_exit(channels, num_classes, width)
        self.channels = list(channels)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, kernel_size=1, bias=False), nn.GroupNorm(GROUPS, width))
            for count in channels
        )
        self.gates = nn.ModuleList(_even_gate(width) for _ in channels[1:])
        self.smoothings = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False),
                nn.Conv2d(width, width, kernel_size=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.GELU(),
            )
            for _ in channels
        )
        self.classifier = nn.Linear(len(channels) * width, num_classes)
        start_near_zero(self.classifier)

    def forward(self, stages_s: Sequence[Tensor]) -> Tensor:
        """Classify from all stages.

        Args:
            stages_s: student maps (B, C_i, H_i, W_i), finest first.

        Returns:
            Logits (B, K).

        Raises:
            ValueError: another number of stages or channels than the module was built for.
        """
        check_stages(stages_s, self.channels, side="student")
        laterals = [layer(maps) for layer, maps in zip(self.laterals, stages_s, strict=True)]
        fused = laterals[-1]
        pooled = [self.smoothings[-1](fused).mean((2, 3))]
        for index in reversed(range(len(laterals) - 1)):
            lateral = laterals[index]
            deeper = resize_to_raster(fused, (lateral.shape[-2], lateral.shape[-1]))
            fused = _gated_sum(self.gates[index], lateral, deeper)
            pooled.append(self.smoothings[index](fused).mean((2, 3)))
        return self.classifier(torch.cat(pooled[::-1], dim=1))


def _even_gate(width: int) -> nn.Conv2d:
    gate = nn.Conv2d(2 * width, 2, kernel_size=1)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)  # type: ignore[arg-type]  # torch types the bias as optional
    return gate


def _gated_sum(gate: nn.Module, stage: Tensor, deeper: Tensor) -> Tensor:
    weights = gate(torch.cat([stage, deeper], dim=1)).sigmoid()
    return stage * weights[:, :1] + deeper * weights[:, 1:]
