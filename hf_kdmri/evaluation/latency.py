"""Speed and size of a model on the machine at hand."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Count all parameters, trainable or frozen, shared ones once; buffers are not counted.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, image_size: int | tuple[int, int]) -> int:
    """Count floating-point operations of one forward pass on one image; a multiply-add counts as two.

    torch counts convolutions, matrix products and attention; normalisation and activations are left out, as in most
    published tables, many of which count a multiply-add once.

    Args:
        model: takes `pixel_values` (1, 3, H, W) as first argument.
        image_size: pixels, one number for a square or (height, width).

    Example:
        >>> count_flops(nn.Conv2d(3, 8, kernel_size=1), 4) == 2 * 3 * 8 * 4 * 4
        True
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    parameter = next(model.parameters())
    pixel_values = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(pixel_values)
    finally:
        model.train(was_training)
    return int(counter.get_total_flops())


def milliseconds_per_image(
    model: nn.Module, image_size: int | tuple[int, int], *, batch_size: int = 1, warmup: int = 5, repeats: int = 30
) -> float:
    """Measure the median time of a forward pass on the model's own device, in eval mode, per image.

    The input is random noise (B, 3, H, W) in the model's type; decoding and preprocessing are not in the number.
    The model returns in the mode (training or eval) in which it came.

    Args:
        model: Takes `pixel_values` (B, 3, H, W) as first argument.
        image_size: Pixels, one number for a square or (height, width).
        batch_size: Images per forward pass; 1 is what a single user waits for.
        warmup: Passes before the clock starts (allocator, kernel choice).
        repeats: Passes on the clock; the median of them is reported.

    Returns:
        Milliseconds per image: median pass divided by `batch_size`.

    Raises:
        ValueError: A size or count below its smallest sensible value, or a model without parameters.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for name, value, least in (
        ("image_size", min(height, width), 1),
        ("batch_size", batch_size, 1),
        ("warmup", warmup, 0),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError(f"{type(model).__name__} has no parameters, so neither its device nor its type is known")

    pixel_values = torch.randn(batch_size, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    was_training, seconds = model.training, []
    model.eval()
    try:
        with torch.inference_mode():
            for step in range(warmup + repeats):
                _synchronize(parameter.device)
                start = time.perf_counter()
                model(pixel_values)
                _synchronize(parameter.device)
                if step >= warmup:
                    seconds.append(time.perf_counter() - start)
    finally:
        model.train(was_training)
    return 1000 * statistics.median(seconds) / batch_size


def _synchronize(device: torch.device) -> None:
    """Wait for the device's queue: accelerators return before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
