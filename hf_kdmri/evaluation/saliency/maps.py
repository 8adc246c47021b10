"""Where a classifier looks: Grad-CAM of any timm network, as maps at the size of its input.

captum computes it. What is added here is the choice of the layer, and the way from a network's own layout (channels
first, channels last, tokens with prefix tokens) to channels first and back. pytorch-grad-cam gives the same maps, but
needs OpenCV, 150 MB in all, for resizing that torch does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri.models import TimmClassifier

logger = logging.getLogger(__name__)

SaliencyMethod = Literal["gradcam", "hirescam"]
Layout = Literal["NCHW", "NHWC", "NLC"]
_CANCELLED = 1e-3  # independent signs over a thousand channels would still leave 3e-2


@dataclass(frozen=True)
class SaliencyLayer:
    """The layer whose output is explained, and how its positions lie in it.

    Args:
        module: name within the timm network, for instance `blocks.6`.
        layout: of its output: channels first, channels last, or tokens.
        prefix_tokens: class, distillation and register tokens before the first position; 0 unless `layout` is NLC.
        channels: number of channels.
        height: rows of positions.
        width: columns of positions.
    """

    module: str
    layout: Layout
    prefix_tokens: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        """Say the layer in words."""
        prefix = f" after {self.prefix_tokens} prefix tokens" if self.prefix_tokens else ""
        return (
            f"{self.module}: {self.height} × {self.width} positions of {self.channels} channels, {self.layout}{prefix}"
        )

    def to_maps(self, output: Tensor) -> Tensor:
        """Bring the layer's output to (B, C, H, W), without prefix tokens."""
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            return output[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (self.height, self.width))
        return output

    def from_maps(self, maps: Tensor, output: Tensor) -> Tensor:
        """Put maps (B, C, H, W) back where `to_maps` took them from; prefix tokens are those of `output`."""
        if self.layout == "NHWC":
            return maps.permute(0, 2, 3, 1)
        if self.layout == "NLC":
            return torch.cat([output[:, : self.prefix_tokens], maps.flatten(2).transpose(1, 2)], dim=1)
        return maps


@torch.no_grad()
def saliency_layer(model: TimmClassifier, pixel_values: Tensor, *, stage: int = -1) -> SaliencyLayer:
    """Choose the layer: the last one of a stage, as the network's own `feature_info` names it.

    A transformer that answers from its class token is the exception at its last stage. What the last block writes into
    the other tokens is read by nobody, so its gradient is zero; there the input of the last attention (`norm1`) is
    explained, the last place from which positions still reach the class token.

    Args:
        model: any classifier of this package.
        pixel_values: (B, 3, H, W); one image is passed through to see shapes.
        stage: index into the model's stage maps, finest first: -1 the coarsest, -2 the one before.

    Returns:
        The layer.

    Raises:
        ValueError: there is no such stage, or the layer's output cannot be laid out as a map.
    """
    indices = model.stage_indices
    if not -len(indices) <= stage < len(indices):
        raise ValueError(
            f"stage is {stage}, but the model has {len(indices)} stage maps; give {-len(indices)} to "
            f"{len(indices) - 1}, or raise num_scales"
        )
    network: Any = model.timm_model
    pixels = pixel_values[:1].to(model.device, model.dtype)
    (stage_map,) = network.forward_intermediates(
        pixels, indices=[indices[stage]], output_fmt="NCHW", intermediates_only=True
    )
    info = network.feature_info if isinstance(network.feature_info, list) else network.feature_info.get_dicts()
    name = info[indices[stage]]["module"]
    layer = _lay_out(name, _output_of(model, name, pixels), stage_map)
    at_the_end = indices[stage] == len(info) - 1
    answers_from_token = getattr(network, "global_pool", None) == "token"
    if at_the_end and answers_from_token and (layer is None or layer.prefix_tokens):
        block = network.get_submodule(name)
        norms = [inner for inner, _ in block.named_modules() if inner.split(".")[-1] == "norm1"]
        if not norms:
            raise ValueError(
                f"{model.config.architecture!r} answers from its class token, and its last block {name!r} has no "
                f"'norm1' before its attention; give another stage"
            )
        name = f"{name}.{norms[-1]}"
        layer = _lay_out(name, _output_of(model, name, pixels), stage_map)
    if layer is None:
        raise ValueError(
            f"the output of {name!r} of {model.config.architecture!r} is no map of {tuple(stage_map.shape[1:])} "
            f"(channels, rows, columns) in any known layout; give another stage"
        )
    return layer


def saliency_maps(
    model: TimmClassifier,
    pixel_values: Tensor,
    *,
    target: Tensor | None = None,
    method: SaliencyMethod = "gradcam",
    stage: int = -1,
) -> Tensor:
    r"""Which positions speak for a class, by Grad-CAM or HiResCAM.

    With the layer's output A (C channels, P positions) and g = ∂ logit / ∂ A:

        gradcam:  relu(Σ_c mean_p(g_cp) · A_cp)  (Selvaraju 2017, 1610.02391)
        hirescam: relu(Σ_c g_cp · A_cp)          (Draelos and Carin 2020, 2011.08891)

    The two are equal where the network averages over positions right after the layer and then classifies linearly.
    Where more layers follow, Grad-CAM's averaged gradient may mark positions that the logit does not depend on.
    Maps are brought to the input's size bilinearly and divided by their maximum, image by image, so they say where and
    not how much. A map that is zero everywhere (nothing speaks for the class) stays zero.

    The chosen layer is logged (level INFO) and is what `saliency_layer` returns.

    Args:
        model: any classifier of this package, in eval mode.
        pixel_values: (B, 3, H, W), normalised for this model.
        target: (B,) classes to explain, for instance the true labels; default is what the model predicts.
        method: `gradcam` or `hirescam`.
        stage: index into the model's stage maps, finest first: -1 the coarsest, -2 the one before.

    Returns:
        (B, H, W) float32 in 0–1, on the model's device.

    Raises:
        ValueError: the model is in training mode, an unknown method or stage, a target of another shape or out of
            range, a layer from which no position reaches the logits, or one whose HiResCAM would be rounding errors.

    Example:
        >>> from hf_kdmri import StudentForImageClassification
        >>> student = StudentForImageClassification.from_timm("test_vit", labels=["a", "b"], image_size=64)
        >>> images = torch.randn(2, 3, 64, 64)
        >>> print(saliency_layer(student, images))
        blocks.5.norm1: 4 × 4 positions of 64 channels, NLC after 1 prefix tokens
        >>> saliency_maps(student, images, target=torch.tensor([0, 1])).shape
        torch.Size([2, 64, 64])
    """
    if method not in ("gradcam", "hirescam"):
        raise ValueError(f"method is {method!r}; give 'gradcam' or 'hirescam'")
    if model.training:
        raise ValueError("the model is in training mode, where dropout and batch statistics change maps; call eval()")
    if pixel_values.ndim != 4 or not len(pixel_values):
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, 3, H, W), B at least 1")
    target = _checked_target(target, len(pixel_values), len(model.labels))
    from captum.attr import LayerGradCam, LayerGradientXActivation  # takes a second, which not every import should

    layer = saliency_layer(model, pixel_values, stage=stage)
    logger.info("%s of %s at %s", method, model.config.architecture, layer)

    def chosen_logit(pixels: Tensor) -> Tensor:
        logits = model(pixels).logits
        classes = logits.argmax(dim=1) if target is None else target.to(logits.device)
        return logits.gather(1, classes[:, None])[:, 0]

    # The caller may be inside no_grad or inference_mode, and may hold the pixels as an inference tensor.
    with torch.inference_mode(False), torch.enable_grad(), _tapped(model, layer) as tap:
        pixels = pixel_values.detach().to(model.device, model.dtype).clone().requires_grad_()
        attribute = LayerGradCam if method == "gradcam" else LayerGradientXActivation
        parts = attribute(chosen_logit, tap).attribute(pixels).detach().float()
    coarse = parts.sum(dim=1, keepdim=True)
    _refuse_empty(coarse, parts, f"{layer.module!r} of {model.config.architecture!r}")
    maps = F.interpolate(coarse.relu(), size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, torch.zeros_like(maps))


def _refuse_empty(coarse: Tensor, parts: Tensor, where: str) -> None:
    """Refuse maps (B, 1, H, W), sums over the channels of `parts`, that are zero or nothing but rounding errors."""
    if not parts.any():
        raise ValueError(
            f"no position of {where} reaches the logits: the whole batch has zero maps; give another stage"
        )
    # A normalisation at each position ignores the scale there, so Σ_c g_c · A_c is zero by Euler's theorem.
    if coarse.abs().max() < _CANCELLED * parts.abs().sum(dim=1).max():
        raise ValueError(
            f"the evidence of {where} cancels over the channels at every position, as it must where a layer "
            f"normalisation follows directly, and HiResCAM would show rounding errors; take gradcam or another stage"
        )


def _checked_target(target: Tensor | None, images: int, classes: int) -> Tensor | None:
    if target is None:
        return None
    target = torch.as_tensor(target)
    if target.shape != (images,) or target.is_floating_point():
        raise ValueError(
            f"target has shape {tuple(target.shape)} and type {target.dtype}; expected integers of shape ({images},)"
        )
    if target.min() < 0 or target.max() >= classes:
        raise ValueError(f"target holds {target.min()} to {target.max()}; expected classes 0 to {classes - 1}")
    return target.long()


def _output_of(model: TimmClassifier, name: str, pixels: Tensor) -> Any:
    """What one module puts out when the whole model reads the pixels."""
    seen: list[Any] = []
    module = model.timm_model.get_submodule(name)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        model(pixels)
    finally:
        handle.remove()
    return seen[-1] if seen else None  # a container that is never called puts nothing out


def _lay_out(name: str, output: Any, stage_map: Tensor) -> SaliencyLayer | None:
    """Recognise the layout of an output by the shape of the stage map (1, C, H, W) that timm makes of it."""
    if not isinstance(output, Tensor):
        return None
    channels, height, width = stage_map.shape[1:]
    shape = tuple(output.shape[1:])
    if shape == (channels, height, width):
        return SaliencyLayer(name, "NCHW", 0, channels, height, width)
    if shape == (height, width, channels):
        return SaliencyLayer(name, "NHWC", 0, channels, height, width)
    if len(shape) == 2 and shape[1] == channels and shape[0] >= height * width:
        return SaliencyLayer(name, "NLC", shape[0] - height * width, channels, height, width)
    return None


@contextmanager
def _tapped(model: TimmClassifier, layer: SaliencyLayer) -> Iterator[nn.Module]:
    """Lead the layer's output through an identity that sees it as (B, C, H, W): what captum can explain."""
    tap = nn.Identity()

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return layer.from_maps(tap(layer.to_maps(output)), output)

    handle = model.timm_model.get_submodule(layer.module).register_forward_hook(hook)
    try:
        yield tap
    finally:
        handle.remove()
