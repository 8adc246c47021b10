"""Which of a timm network's feature maps form its pyramid of stages."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def stage_indices(model: nn.Module, num_scales: int) -> list[int]:
    """Choose the maps that `forward_intermediates` should return, finest first.

    A hierarchical network gives the last map of each of its `num_scales` coarsest strides (8, 16 and 32 for most;
    stride 4 has 3,136 positions at 224 pixels and is left out). A plain ViT has one stride: it gives the maps at
    evenly spaced depths from one half to the last block (½, ¾ and 1 for three scales).

    Args:
        model: a timm model with `feature_info`.
        num_scales: how many maps to return, at least 1.

    Returns:
        Indices for `forward_intermediates(indices=...)`, ascending.

    Raises:
        ValueError: `num_scales` is below 1 or above what the network has.
    """
    info = _feature_info(model)
    if num_scales < 1:
        raise ValueError(f"num_scales is {num_scales}; at least one stage map is needed")
    strides = [entry["reduction"] for entry in info]
    last_of_stride = {stride: index for index, stride in enumerate(strides)}
    if len(last_of_stride) == 1:
        depth = len(info)
        if num_scales > depth:
            raise ValueError(f"num_scales is {num_scales}, but the network has {depth} blocks; ask for at most {depth}")
        fractions = [1.0] if num_scales == 1 else [0.5 + 0.5 * k / (num_scales - 1) for k in range(num_scales)]
        indices = sorted({math.ceil(depth * fraction) - 1 for fraction in fractions})
        if len(indices) < num_scales:  # a very shallow network: take its last blocks instead of one block twice
            indices = list(range(depth - num_scales, depth))
        return indices
    indices = sorted(last_of_stride.values())
    if num_scales > len(indices):
        raise ValueError(
            f"num_scales is {num_scales}, but the network has {len(indices)} strides ({sorted(last_of_stride)}); "
            f"ask for at most {len(indices)}"
        )
    return indices[-num_scales:]


def stage_channels(model: nn.Module, indices: list[int]) -> list[int]:
    """Return the number of channels of each of the maps at these indices."""
    info = _feature_info(model)
    return [info[index]["num_chs"] for index in indices]


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info
    return info if isinstance(info, list) else info.get_dicts()
