"""Batch normalisation of a frozen network, folded into the convolutions before it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hf_kdmri.models.image_classification import TimmClassifier

Model = TypeVar("Model", bound=TimmClassifier)
# By exact type: a subclass may treat its weights in ways of its own (standardised ones would undo the folding).
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)
_TOLERANCE = 1e-3  # of the largest answer; rounding moves it by about 1e-6


def fold_batch_norm(model: Model) -> Model | None:
    """A copy of a frozen model that answers as it does, without the batch normalisations that follow a convolution.

    In eval mode batch normalisation multiplies and shifts each channel by constants, so a convolution before it can do
    that with its own weights (`torch.nn.utils.fusion.fuse_conv_bn_weights`). What follows what is found in a
    forward pass on noise, and the copy is compared with the model on other noise.

    Args:
        model: in eval mode; it is not changed.

    Returns:
        The copy, for inference only; None where nothing can be folded, or the copy would answer otherwise (a
        convolution whose result is used elsewhere as well).
    """
    folded = copy.deepcopy(model).requires_grad_(False)
    pairs = _pairs(folded)
    if not pairs:
        return None
    # The weights of a convolution without a bias get one, which `copy_` into the old ones could not give.
    for convolution, normalisation in pairs:
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            normalisation.running_mean,
            normalisation.running_var,
            normalisation.eps,
            normalisation.weight,
            normalisation.bias,
        )
        convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    _replace(folded, {normalisation: _what_is_left(normalisation) for _, normalisation in pairs})
    return folded if _agree(model, folded) else None


def _pairs(model: TimmClassifier) -> list[tuple[Any, Any]]:
    """Convolutions and the normalisations that are given their result, each used once in a forward pass."""
    results: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensor is kept, so that no other gets its id
    found: list[tuple[Any, Any]] = []
    uses: dict[nn.Module, int] = {}

    def after(module: nn.Module, given: Any, result: Tensor) -> None:
        uses[module] = uses.get(module, 0) + 1
        results[id(result)] = module, result

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        uses[module] = uses.get(module, 0) + 1
        if id(given[0]) in results:
            found.append((results[id(given[0])][0], module))

    hooks = []
    for module in model.modules():
        if type(module) in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(after))
        elif type(module) in _NORMALISATIONS and getattr(module, "running_var", None) is not None:
            hooks.append(module.register_forward_pre_hook(before))
    try:
        _answers(model, seed=0)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(uses[module] == 1 for module in pair)]


def _what_is_left(normalisation: nn.Module) -> nn.Module:
    """The activation that timm's normalisations hold; their dropout does nothing in eval mode."""
    activation = getattr(normalisation, "act", None)
    return nn.Identity() if activation is None else activation


def _replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])


def _agree(model: TimmClassifier, folded: TimmClassifier) -> bool:
    pairs = zip(_answers(model, seed=1), _answers(folded, seed=1), strict=True)
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))
        for one, other in pairs
    )


@torch.no_grad()
def _answers(model: TimmClassifier, seed: int) -> list[Tensor]:
    """Logits and stage maps of two pictures of noise, in the model's own precision."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, model.image_size, model.image_size, generator=draw)
    pixels = noise.to(model.device, model.dtype)
    with torch.autocast(pixels.device.type, enabled=False):
        logits, stages = model.stage_features(pixels)
    return [logits, *stages]
