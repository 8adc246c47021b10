"""The timm module behind a model: built by name, weights timm's own or those of a file, a new classifier."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open


def check_architecture(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest that it does.

    Raises:
        ValueError: there is no such architecture.
    """
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    hint = f"; the nearest names are {', '.join(near)}" if near else "; `timm.list_models()` lists all"
    raise ValueError(f"timm {timm.__version__} knows no architecture {name!r}{hint}")


def create_network(
    architecture: str,
    num_classes: int,
    arguments: dict[str, Any],
    pretrained: bool,
    weights: str | Path | None,
) -> torch.nn.Module:
    """Build timm's module with timm's own initialisation, or with ImageNet weights and a fresh classifier.

    Args:
        architecture: a timm model name, with or without a weights tag.
        num_classes: of the classifier, which starts near zero.
        arguments: further ones of `timm.create_model`; those that are None are left out.
        pretrained: take timm's ImageNet weights from the Hub.
        weights: a local `.safetensors` file in timm's keys instead.

    Raises:
        FileNotFoundError: `weights` does not exist.
        ValueError: it holds other weights or is no safetensors file, or the architecture does not take an argument.
    """
    arguments = {key: value for key, value in arguments.items() if value is not None}
    overlay = None
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"no weights file at {path}; give a .safetensors file with timm's keys")
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is not a .safetensors file, and other formats can run code when loaded; convert it with "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
            )
        overlay = {"file": str(path)}
    fine_tuned = pretrained or weights is not None
    try:
        network = timm.create_model(
            architecture, pretrained=fine_tuned, pretrained_cfg_overlay=overlay, num_classes=num_classes, **arguments
        )
    except TypeError as error:
        raise ValueError(f"the timm architecture {architecture!r} does not take {arguments}: {error}") from error
    except RuntimeError as error:
        if weights is None:
            raise
        first = str(error).splitlines()[:2]
        raise ValueError(f"{weights} does not hold weights of {architecture!r}: {' '.join(first)}") from error
    if weights is not None:
        _refuse_missing_weights(network, Path(weights), architecture)
    _start_classifier_small(network)
    return network


def _refuse_missing_weights(network: torch.nn.Module, path: Path, architecture: str) -> None:
    """Refuse a file that lacks features of the network; timm would leave them untrained and only log it."""
    pretrained_cfg: Any = network.pretrained_cfg
    classifier = pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    needed = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in stored and not key.startswith(heads)]
    if missing:
        raise ValueError(
            f"{path} does not hold weights of {architecture!r} in timm's keys: {len(missing)} of {len(needed)} are "
            f"missing, the first is {missing[0]}"
        )


def _start_classifier_small(network: torch.nn.Module) -> None:
    """Let a fresh classifier begin near zero, so that the first logits are nearly equal.

    timm draws some classifiers (EfficientNet, MobileNetV4) from ±1/√classes: with 3 classes instead of 1000 the first
    logits are so large that their gradients spoil trained features, and untrained ones take epochs to recover.
    """
    heads: Any = network.get_classifier()  # type: ignore[operator]  # every timm network has it
    # Networks with a distillation token (DeiT, EfficientFormer) have two classifiers and average their logits.
    for head in heads if isinstance(heads, tuple) else (heads,):
        for module in head.modules():
            if isinstance(module, torch.nn.Linear):
                start_near_zero(module)


def start_near_zero(classifier: torch.nn.Linear) -> None:
    """Draw small weights and no bias, so that the first logits are nearly equal."""
    torch.nn.init.trunc_normal_(classifier.weight, std=0.01)
    torch.nn.init.zeros_(classifier.bias)
