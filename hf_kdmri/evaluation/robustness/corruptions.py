"""What MRI pictures meet outside the laboratory, at stated severities and reproducible image by image.

Bias fields, Rician noise and Gibbs ringing are MONAI's (the extra `robustness`); blur, gamma and geometry are kornia's.
MONAI has no motion ghosting, which therefore stands here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from kornia.enhance import adjust_gamma
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor
from torch.nn import functional as F

# Strength at the severities 1, 2, …; the unit stands behind. Flips have no strength and so one severity.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "bias_field": (0.1, 0.2, 0.3, 0.45, 0.6),  # bound of the coefficients of Legendre polynomials up to degree 3
    "rician_noise": (0.02, 0.04, 0.07, 0.11, 0.16),  # standard deviation of either channel, share of full scale
    "ghosting": (0.15, 0.3, 0.5, 0.75, 1.0),  # intensity of the two ghosts together, share of the picture's
    "gibbs_ringing": (0.6, 0.7, 0.78, 0.84, 0.89),  # MONAI's alpha: share of k-space's radius that is lost
    "blur": (0.004, 0.008, 0.012, 0.018, 0.026),  # standard deviation, share of the side
    "downsampling": (1.5, 2.0, 3.0, 4.0, 6.0),  # factor per side
    "gamma": (1.2, 1.4, 1.75, 2.2, 3.0),  # exponent, or its inverse
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added or subtracted, share of full scale
    "contrast": (0.15, 0.3, 0.45, 0.6, 0.75),  # share of the distance to the picture's mean that is lost
    "rotation": (5.0, 10.0, 20.0, 30.0, 45.0),  # degrees, either way
    "zoom_in": (1.1, 1.2, 1.35, 1.5, 1.75),  # factor: a smaller field of view, cropped at all four sides
    "zoom_out": (1.1, 1.2, 1.35, 1.5, 1.75),  # factor: a larger field of view, black around the picture
    "shift": (0.03, 0.06, 0.1, 0.15, 0.2),  # length, share of the side, in any direction: cropped at one side or two
    "horizontal_flip": (1.0,),  # left and right exchanged
    "vertical_flip": (1.0,),  # upside down
}
MISSING_EXTRA = (
    "the corruptions bias_field, rician_noise and gibbs_ringing need MONAI; install it with pip install "
    "'hf_kdmri[robustness]', or name the corruptions to use without these three"
)


def corrupt(views: Tensor, index: Tensor | Sequence[int], corruption: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupt each picture of a batch.

    What is random (a direction, a sign, the noise) follows from (`seed`, the picture's index, `corruption`); `severity`
    sets the strength alone. So a picture's ghost grows with severity and stays in its place, and is the same in any
    batch. All channels of a picture get the same, so a grey picture stored as RGB stays grey.

    Args:
        views: (B, 1 or 3, H, W) uint8, intensities 0–255.
        index: (B,) position of each picture in its data set.
        corruption: a key of `SEVERITIES`.
        severity: 0 (nothing happens) up to the number of strengths in `SEVERITIES`.
        seed: of the whole test.

    Returns:
        (B, C, H, W) uint8, a new tensor on the device of `views`.

    Raises:
        ValueError: views of another shape or type, another number of indices, an unknown corruption or severity.
        ImportError: the corruption is MONAI's, and MONAI is not installed.

    Example:
        >>> views = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
        >>> corrupt(views, [0], "vertical_flip", 1)[0, 0, 0, :3]
        tensor([56, 57, 58], dtype=torch.uint8)
        >>> bool((corrupt(views, [0], "blur", 0) == views).all())
        True
    """
    if views.ndim != 4 or views.shape[1] not in (1, 3) or views.dtype != torch.uint8:
        raise ValueError(f"views are {views.dtype} of shape {tuple(views.shape)}; expected uint8 (B, 1 or 3, H, W)")
    rows = [int(row) for row in index]
    if len(rows) != len(views):
        raise ValueError(f"{len(rows)} indices for {len(views)} views; expected one for each")
    check_corruptions([corruption])
    strengths = SEVERITIES[corruption]
    if not 0 <= severity <= len(strengths):
        raise ValueError(f"severity of {corruption} is {severity}; expected 0 to {len(strengths)}")
    if severity == 0 or not rows:
        return views.clone()
    draws = [np.random.default_rng((seed, row, zlib.crc32(corruption.encode()))) for row in rows]
    with torch.no_grad(), torch.autocast(views.device.type, enabled=False):
        changed = _FUNCTIONS[corruption](views.float() / 255, strengths[severity - 1], draws)
        return (changed * 255).round().clamp(0, 255).to(torch.uint8)


def check_corruptions(names: Sequence[str]) -> None:
    """Refuse names that no corruption has.

    Raises:
        ValueError: naming the first of them and all that there are.
    """
    for name in names:
        if name not in SEVERITIES:
            raise ValueError(f"unknown corruption {name!r}; there are {', '.join(SEVERITIES)}")


def corruption_title(name: str) -> str:
    """A corruption's name as people write it: two are called after persons.

    Example:
        >>> corruption_title("gibbs_ringing")
        'Gibbs ringing'
    """
    return name.replace("_", " ").replace("rician", "Rician").replace("gibbs", "Gibbs")


def _monai() -> Any:
    try:
        import monai.transforms
    except ImportError as error:
        raise ImportError(MISSING_EXTRA) from error
    return monai.transforms


def _per_channel(images: Tensor, draws: Sequence[np.random.Generator], transform: Any) -> Tensor:
    """Apply one of MONAI's random transforms to each channel alone, with one seed for all channels of a picture."""
    changed = torch.empty_like(images)
    for row, draw in enumerate(draws):
        state = int(draw.integers(2**32))
        for channel in range(images.shape[1]):
            transform.set_random_state(state)
            changed[row, channel] = transform(images[row, channel : channel + 1]).as_subclass(Tensor)[0]
    return changed


def _bias_field(images: Tensor, bound: float, draws: Sequence[np.random.Generator]) -> Tensor:
    transform = _monai().RandBiasField(degree=3, coeff_range=(-bound, bound), prob=1.0)
    changed = _per_channel(images, draws, transform)
    # A viewer windows to the brightest tissue: without this the field would mostly saturate or darken the picture.
    bright = [torch.quantile(pictures.flatten(1), 0.999, dim=1).view(-1, 1, 1, 1) for pictures in (images, changed)]
    return changed * bright[0] / bright[1].clamp(min=1e-6)


def _rician_noise(images: Tensor, std: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return _per_channel(images, draws, _monai().RandRicianNoise(prob=1.0, std=std, sample_std=False))


def _gibbs_ringing(images: Tensor, alpha: float, draws: Sequence[np.random.Generator]) -> Tensor:
    transform = _monai().GibbsNoise(alpha)
    return torch.stack([transform(picture).as_subclass(Tensor) for picture in images])


def _ghosting(images: Tensor, strength: float, draws: Sequence[np.random.Generator]) -> Tensor:
    """Motion of one frequency: lines of k-space weighted by 1 + s·cos(2πjd/N + φ), which adds two displaced copies.

    By the shift theorem |I + s/2·(e^{iφ}·I(x + d) + e^{−iφ}·I(x − d))|, wrapped around as k-space does. The direction
    of phase encoding, the distance d (15 to 45 % of the side) and φ are drawn.
    """
    changed = []
    for picture, draw in zip(images, draws, strict=True):
        axis, share, phase = -1 - int(draw.integers(2)), draw.uniform(0.15, 0.45), draw.uniform(0, 2 * math.pi)
        distance = round(share * picture.shape[axis])
        left, right = picture.roll(distance, axis), picture.roll(-distance, axis)
        real = picture + strength / 2 * math.cos(phase) * (left + right)
        changed.append(torch.hypot(real, strength / 2 * math.sin(phase) * (right - left)))
    return torch.stack(changed)


def _blur(images: Tensor, share: float, draws: Sequence[np.random.Generator]) -> Tensor:
    sigma = share * max(images.shape[-2:])
    reach = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)  # reflected at the border, at most once
    return gaussian_blur2d(images, 2 * reach + 1, (sigma, sigma))


def _downsampling(images: Tensor, factor: float, draws: Sequence[np.random.Generator]) -> Tensor:
    size = tuple(max(1, round(side / factor)) for side in images.shape[-2:])
    small = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic")


def _gamma(images: Tensor, exponent: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return adjust_gamma(images, exponent ** _signs(images, draws))


def _brightness(images: Tensor, amount: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return images + amount * _signs(images, draws).view(-1, 1, 1, 1)


def _contrast(images: Tensor, loss: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return images.lerp(images.mean((1, 2, 3), keepdim=True), loss)


def _rotation(images: Tensor, degrees: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return _warp(images, angle=degrees * _signs(images, draws))


def _zoom_in(images: Tensor, factor: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return _warp(images, zoom=factor)


def _zoom_out(images: Tensor, factor: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return _warp(images, zoom=1 / factor)


def _shift(images: Tensor, share: float, draws: Sequence[np.random.Generator]) -> Tensor:
    angle = images.new_tensor([draw.uniform(0, 2 * math.pi) for draw in draws])
    height, width = images.shape[-2:]
    return _warp(images, shift=share * torch.stack([width * angle.cos(), height * angle.sin()], dim=1))


def _horizontal_flip(images: Tensor, _: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return images.flip(-1)


def _vertical_flip(images: Tensor, _: float, draws: Sequence[np.random.Generator]) -> Tensor:
    return images.flip(-2)


def _signs(images: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
    """+1 or −1 for each picture, (B,)."""
    return images.new_tensor([draw.choice((-1.0, 1.0)) for draw in draws])


def _warp(images: Tensor, *, angle: Tensor | None = None, zoom: float = 1.0, shift: Tensor | None = None) -> Tensor:
    """Turn, zoom and move about the centre; what comes in from outside is black."""
    batch, _, height, width = images.shape
    centre = images.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(batch, 2)
    affine = get_affine_matrix2d(
        images.new_zeros(batch, 2) if shift is None else shift,
        centre,
        images.new_full((batch, 2), zoom),
        images.new_zeros(batch) if angle is None else angle,
    )
    return warp_affine(images, affine[:, :2], (height, width), padding_mode="zeros")


_FUNCTIONS: dict[str, Callable[[Tensor, float, Sequence[np.random.Generator]], Tensor]] = {
    "bias_field": _bias_field,
    "rician_noise": _rician_noise,
    "ghosting": _ghosting,
    "gibbs_ringing": _gibbs_ringing,
    "blur": _blur,
    "downsampling": _downsampling,
    "gamma": _gamma,
    "brightness": _brightness,
    "contrast": _contrast,
    "rotation": _rotation,
    "zoom_in": _zoom_in,
    "zoom_out": _zoom_out,
    "shift": _shift,
    "horizontal_flip": _horizontal_flip,
    "vertical_flip": _vertical_flip,
}
