"""From the shared view of a slice to the input of one model: size, channels, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def prepare_pixels(
    view: Tensor,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    source_mean: Sequence[float] | None = None,
    source_std: Sequence[float] | None = None,
) -> Tensor:
    """Turn a view into what a model expects, on the view's device.

    Teacher and student each call this on the same view, so both see the same picture, every one in its own size and
    normalisation.

    Args:
        view: (B, 1 or 3, H, W). uint8 means raw intensities 0–255; floating point means already normalised with
            `source_mean` and `source_std`.
        image_size: side of the square input in pixels; a view of another size is resized (bicubic, antialiased).
        mean: per channel, of intensities scaled to 0–1.
        std: per channel, of intensities scaled to 0–1.
        source_mean: normalisation of a floating-point view; needed only for one.
        source_std: likewise.

    Returns:
        (B, 3, image_size, image_size) float32.

    Raises:
        ValueError: the view has another shape, or is floating point and its normalisation was not given.
    """
    if view.ndim != 4 or view.shape[1] not in (1, 3):
        raise ValueError(f"expected pixel values of shape (B, 1 or 3, H, W), got {tuple(view.shape)}")
    if view.dtype == torch.uint8:
        pixels = view.float() / 255
        offset, scale = per_channel(mean, pixels), per_channel(std, pixels)
    else:
        if source_mean is None or source_std is None:
            raise ValueError("a floating-point view needs source_mean and source_std; or pass raw uint8 intensities")
        pixels = view.float()
        # ((x·s + m) − mean) / std, folded so that equal normalisations give back the very same numbers
        source_offset, source_scale = per_channel(source_mean, pixels), per_channel(source_std, pixels)
        offset = (per_channel(mean, pixels) - source_offset) / source_scale
        scale = per_channel(std, pixels) / source_scale
    if view.shape[-2:] != (image_size, image_size):
        pixels = F.interpolate(pixels, size=(image_size, image_size), mode="bicubic", antialias=True)
        if view.dtype == torch.uint8:
            pixels = pixels.clamp(0, 1)  # bicubic overshoots at edges; an 8-bit resize would have clipped too
    return (pixels - offset) / scale


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """One number for each channel, (1, C, 1, 1), of the dtype and on the device of another tensor.

    They are filled in there: a copy from the host would make every step wait for the device.
    """
    return torch.cat([like.new_full((1, 1, 1, 1), value) for value in values], dim=1)
