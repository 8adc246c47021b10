"""Batch normalisation of a frozen network, folded into the convolutions before it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hf_kdmri.models.image_classification import TimmClassifier

Model = TypeVar("Model", bound=TimmClassifier)
Pair = tuple[str, str]  # names of a convolution and of the normalisation after it
# By exact type: a subclass may treat its weights in ways of its own (standardised ones would undo the folding).
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)
_TOLERANCE = 1e-3  # of the largest answer; rounding in float32 moves it by 1e-6 to 3e-5


def fold_batch_norm(model: Model) -> Model | None:
    """A copy of a frozen model that answers as it does, without the batch normalisations that follow a convolution.

    In eval mode batch normalisation multiplies and shifts each channel by constants, so a convolution before it can do
    that with its own weights (`torch.nn.utils.fusion.fuse_conv_bn_weights`). What follows what is found in a
    forward pass on noise, and the copy is compared with the model on other noise: pairs that change an answer (the
    result of the convolution is used elsewhere as well) are left as they are. All of that is computed in float32 on the
    CPU, so that the copy is the same wherever the model is.

    Args:
        model: in eval mode; it is not changed.

    Returns:
        The copy, on the model's device, in its precision, for inference only; None where there is nothing to fold, or
        it failed, of which there is a warning.
    """
    if not any(type(module) in _NORMALISATIONS for module in model.modules()):
        return None
    try:
        exact = copy.deepcopy(model).float().cpu().requires_grad_(False)
        pairs = _harmless(exact, _pairs(exact))
        folded = _folded(exact, pairs)
    except Exception as error:  # whatever a network does in its own ways, it can still teach as it is
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"batch normalisation of {model.config.architecture} is not folded: {reason}", stacklevel=2)
        return None
    return nn.Module.to(folded, model.device, model.dtype) if pairs else None


def _pairs(model: TimmClassifier) -> list[Pair]:
    """Convolutions and the normalisations that are given their result, each used once in a forward pass."""
    results: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that no other gets its id
    found: list[Pair] = []
    uses: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def after(module: nn.Module, given: Any, result: Tensor) -> None:
            uses[name] = uses.get(name, 0) + 1
            results[id(result)] = name, result

        def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            uses[name] = uses.get(name, 0) + 1
            if given and id(given[0]) in results:
                found.append((results[id(given[0])][0], name))

        if type(module) in _CONVOLUTIONS:
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before)

    hooks = [
        watch(name, module)
        for name, module in model.named_modules()
        if type(module) in _CONVOLUTIONS
        or (type(module) in _NORMALISATIONS and getattr(module, "running_var", None) is not None)
    ]
    try:
        _answers(model, seed=0)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(uses[name] == 1 for name in pair)]


def _harmless(model: Model, pairs: Sequence[Pair]) -> list[Pair]:
    """Those pairs that can be folded without an answer changing, found by halving."""
    if not pairs or _agree(model, _folded(model, pairs)):
        return list(pairs)
    if len(pairs) == 1:
        return []
    middle = len(pairs) // 2
    return _harmless(model, pairs[:middle]) + _harmless(model, pairs[middle:])


def _folded(model: Model, pairs: Sequence[Pair]) -> Model:
    folded = copy.deepcopy(model)
    modules: dict[str, Any] = dict(folded.named_modules())
    for name, after in pairs:
        convolution, normalisation = modules[name], modules[after]
        convolution.weight, convolution.bias = (
            part.requires_grad_(False)
            for part in fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                normalisation.running_mean,
                normalisation.running_var,
                normalisation.eps,
                normalisation.weight,
                normalisation.bias,
            )
        )
        parent, _, attribute = after.rpartition(".")
        # timm's normalisations hold the activation that follows them; their dropout does nothing in eval mode
        setattr(modules[parent], attribute, getattr(normalisation, "act", None) or nn.Identity())
    return folded


def _agree(model: TimmClassifier, folded: TimmClassifier) -> bool:
    pairs = zip(_answers(model, seed=1), _answers(folded, seed=1), strict=True)
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))
        for one, other in pairs
    )


@torch.no_grad()
def _answers(model: TimmClassifier, seed: int) -> list[Tensor]:
    """Logits and stage maps of two pictures of noise."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, model.image_size, model.image_size, generator=draw)
    with torch.autocast("cpu", enabled=False):
        logits, stages = model.stage_features(noise)
    return [logits, *stages]
