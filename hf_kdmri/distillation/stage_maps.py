"""Checks of stage maps, and the common raster on which two of them can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

GROUPS = 8  # of group normalisation in exits


def resize_to_raster(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to another raster: by the mean of each cell where it is not finer, else bilinearly.

    Args:
        maps: (B, C, H, W).
        size: height and width of the raster, cells.

    Returns:
        (B, C, *size); the maps themselves where they already have this size.

    Example:
        >>> import torch
        >>> resize_to_raster(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), (1, 1)).item()
        3.0
    """
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def check_map(maps: Tensor, channels: int, *, side: str) -> None:
    """Refuse a map that is not (B, channels, H, W).

    Args:
        maps: the stage map.
        channels: what the module was built for.
        side: "student" or "teacher", for the message.

    Raises:
        ValueError: another number of axes or channels.
    """
    if maps.ndim != 4 or maps.shape[1] != channels:
        raise ValueError(
            f"expected a {side} map (B, {channels}, H, W), got {tuple(maps.shape)}; build the module with the channels "
            f"of the stage it is given"
        )


def check_stages(stages: Sequence[Tensor], channels: Sequence[int], *, side: str) -> None:
    """Refuse stage maps that do not have the channels a module was built for.

    Args:
        stages: maps (B, C_i, H_i, W_i), finest first.
        channels: C_i, likewise.
        side: "student" or "teacher", for the message.

    Raises:
        ValueError: another number of stages, axes or channels, or unequal batch sizes.
    """
    got = [tuple(maps.shape) for maps in stages]
    fits = len(stages) == len(channels) and all(
        maps.ndim == 4 and maps.shape[1] == expected for maps, expected in zip(stages, channels, strict=True)
    )
    if not fits:
        raise ValueError(
            f"expected {len(channels)} {side} maps (B, C, H, W) with channels {list(channels)}, finest first, got "
            f"{got}; build the module with the channels of the stages it is given"
        )
    if len({maps.shape[0] for maps in stages}) != 1:
        raise ValueError(f"the batch sizes of the {side} maps differ: {got}")


def check_channels(channels: Sequence[int], *, side: str) -> None:
    """Refuse a list of channels that describes no stages.

    Args:
        channels: channels of each stage, finest first.
        side: "student" or "teacher", for the message.

    Raises:
        ValueError: no stages, or a stage without channels.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"{side} channels are {list(channels)}; one number of at least 1 per stage is needed")


def check_exit(channels: Sequence[int], num_classes: int, width: int) -> None:
    """Refuse what no exit behind the student's stages can be built with.

    Args:
        channels: channels of the student's stages, finest first.
        num_classes: K.
        width: channels within the exit.

    Raises:
        ValueError: no stages, fewer than two classes, or a width that is not a multiple of `GROUPS`.
    """
    check_channels(channels, side="student")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; at least 2 are needed")
    check_width(width)


def check_width(width: int) -> None:
    """Refuse a number of channels that group normalisation cannot divide.

    Raises:
        ValueError: it is not a multiple of `GROUPS`.
    """
    if width < GROUPS or width % GROUPS:
        raise ValueError(f"width is {width}; it must be a multiple of {GROUPS}, the groups of its normalisation")
