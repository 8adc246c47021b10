"""Start a MobileNetV2 from the ImageNet weights of an EfficientNet-Lite0.

There are no ImageNet weights of a student of at most 2.5 M parameters at hand. EfficientNet-Lite0 is built of the
same blocks as MobileNetV2 (inverted residuals, ReLU6, no squeeze-and-excitation), a quarter wider, with some 5 × 5
kernels. Weight selection (Xu et al., "Initializing Models with Larger Ones", ICLR 2024) takes a part of a larger
model's weights: the channels with the largest norms, the same along each residual stream, and the middle 3 × 3 of a 5
× 5 kernel.

    python experiments/select_weights.py LITE0.safetensors OUT.safetensors
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

SOURCE, TARGET = "tf_efficientnet_lite0", "mobilenetv2_100"


def largest(importance: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` largest entries; all of them in order if the count is equal."""
    return importance.topk(count).indices.sort().values


def take(weight: Tensor, out_channels: Tensor | None, in_channels: Tensor | None, kernel: int) -> Tensor:
    """The chosen channels of a convolution's weight (O, I, K, K), cut or padded to the middle `kernel` × `kernel`."""
    if out_channels is not None:
        weight = weight[out_channels]
    if in_channels is not None:
        weight = weight[:, in_channels]
    edge = (weight.shape[-1] - kernel) // 2
    return weight[..., edge : edge + kernel, edge : edge + kernel].clone()


def take_norm(target: nn.BatchNorm2d, source: nn.BatchNorm2d, channels: Tensor | None) -> None:
    """Copy scale, shift and running statistics of the chosen channels."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(source, name).data
        getattr(target, name).data.copy_(tensor if channels is None else tensor[channels])


def stream_importance(stage: Iterable[InvertedResidual]) -> Tensor:
    """Norm, squared, of what each channel of a stage's residual stream carries: its last normalisations' scales."""
    return torch.stack([block.bn3.weight.data.square() for block in stage]).sum(0)


def copy_block(target: InvertedResidual, source: InvertedResidual, inputs: Tensor, outputs: Tensor) -> None:
    """Fill an inverted residual from a wider one, given the channels kept of its input and of its output."""
    count = target.conv_dw.weight.shape[0]
    importance = source.bn2.weight.data.abs() * source.conv_pwl.weight.data[outputs].flatten(1).norm(dim=0)
    middle = largest(importance, count)
    kernel = target.conv_dw.weight.shape[-1]
    target.conv_pw.weight.data.copy_(take(source.conv_pw.weight.data, middle, inputs, 1))
    target.conv_dw.weight.data.copy_(take(source.conv_dw.weight.data, middle, None, kernel))
    target.conv_pwl.weight.data.copy_(take(source.conv_pwl.weight.data, outputs, middle, 1))
    take_norm(target.bn1, source.bn1, middle)
    take_norm(target.bn2, source.bn2, middle)
    take_norm(target.bn3, source.bn3, outputs)


def select_weights(source: EfficientNet, target: EfficientNet) -> None:
    """Fill `target` from `source`, in place. A block that the source lacks starts as the identity."""
    target.conv_stem.weight.data.copy_(source.conv_stem.weight.data)
    take_norm(target.bn1, source.bn1, None)
    blocks_s: Any = source.blocks  # stages of blocks; torch does not tell what a Sequential holds
    blocks_t: Any = target.blocks
    first_s, first_t = blocks_s[0][0], blocks_t[0][0]
    for name in ("conv_dw", "conv_pw"):
        getattr(first_t, name).weight.data.copy_(getattr(first_s, name).weight.data)
    for name in ("bn1", "bn2"):
        take_norm(getattr(first_t, name), getattr(first_s, name), None)
    inputs = torch.arange(first_t.bn2.num_features)
    for stage_s, stage_t in zip(blocks_s[1:], blocks_t[1:], strict=True):
        outputs = largest(stream_importance(stage_s), stage_t[0].bn3.num_features)
        for index, block in enumerate(stage_t):
            copy_block(block, stage_s[min(index, len(stage_s) - 1)], inputs if index == 0 else outputs, outputs)
            if index >= len(stage_s):
                nn.init.zeros_(block.bn3.weight)
                nn.init.zeros_(block.bn3.bias)
        inputs = outputs
    target.conv_head.weight.data.copy_(take(source.conv_head.weight.data, None, inputs, 1))
    take_norm(target.bn2, source.bn2, None)


def main() -> None:
    """Write the file, with its origin in its metadata, which a model card repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help=f"{SOURCE}'s weights, safetensors, in timm's keys")
    parser.add_argument("out", type=Path, help=f"{TARGET}'s weights to write")
    arguments = parser.parse_args()
    source = timm.create_model(SOURCE, num_classes=1000)
    source.load_state_dict(load_file(arguments.source))
    target = timm.create_model(TARGET, num_classes=1000)
    assert isinstance(source, EfficientNet) and isinstance(target, EfficientNet)
    select_weights(source, target)
    target.classifier.weight.data.copy_(source.classifier.weight.data)
    target.classifier.bias.data.copy_(source.classifier.bias.data)
    origin = f"a selection of {SOURCE}'s ImageNet weights (weight selection, Xu et al., ICLR 2024)"
    save_file(target.state_dict(), arguments.out, metadata={"origin": origin})


if __name__ == "__main__":
    main()
