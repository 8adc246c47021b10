"""Random changes of a slice's appearance: what other scanners, exports, screenshots and web sites do to a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from hf_kdmri.data.transfer import send

_STREAM = 1  # keeps these draws apart from those of the geometry
_KNOTS = 6  # of a tone curve, its ends included
_LEVELS = 4  # of blur and of coarseness: one kernel or size per level, so that a batch needs few calls


def image_keys(seed: int, epoch: int | Tensor | np.ndarray, index: Tensor | np.ndarray) -> list[tuple[int, int, int]]:
    """What an image's random numbers follow from: (seed, epoch, index) of each image of a batch."""
    rows = index.tolist()
    epochs = [epoch] * len(rows) if isinstance(epoch, int) else epoch.tolist()
    return [(seed, number, row) for number, row in zip(epochs, rows, strict=True)]


@dataclass(frozen=True)
class RandomAppearance:
    """Tone curve, shading, blur or sharpening, coarse pixels, noise, marks, JPEG: each with a probability of its own.

    They are applied in this order, which is that of their causes: the scanner, its export, the picture's later life.
    As in `RandomViews`, the parameters of an image follow from (seed, epoch, index) alone. JPEG is coded on the CPU
    wherever the views are, so that a view is the same on any device.

    Args:
        applied: probability that an image is changed at all; the others keep every pixel.
        tone: probability of a random rising curve from grey to grey, its black and white points included.
        tone_strength: 0 leaves the curve straight, 1 lets its knots fall anywhere.
        sequence: probability of a curve that rises and falls at random instead, black staying black: another sequence
            (T2, FLAIR, no contrast medium) turns bright tissue dark and dark tissue bright.
        shading: probability of a smooth bright and dark side.
        shading_strength: largest change by shading, a share.
        sharpness: probability of blur or of unsharp masking, one or the other.
        blur: largest standard deviation of the blur, a share of the side.
        coarse: probability that the picture went through fewer pixels.
        coarsest: smallest share of pixels per side that it went through.
        noise: probability of Rician noise.
        noise_strength: largest standard deviation of the noise, a share of the range.
        marks: probability of bright bars as scales, letters and frames leave them, outside the middle.
        jpeg: probability of compression.
        worst_quality: lowest JPEG quality.
    """

    applied: float = 1.0
    tone: float = 0.5
    tone_strength: float = 0.5
    sequence: float = 0.12
    shading: float = 0.25
    shading_strength: float = 0.4
    sharpness: float = 0.35
    blur: float = 0.012
    coarse: float = 0.3
    coarsest: float = 0.35
    noise: float = 0.25
    noise_strength: float = 0.06
    marks: float = 0.15
    jpeg: float = 0.35
    worst_quality: int = 15

    def __call__(
        self, views: Tensor, index: Tensor | np.ndarray, *, seed: int, epoch: int | Tensor | np.ndarray
    ) -> Tensor:
        """Draw and apply one appearance per image.

        Args:
            views: (B, C, H, W) uint8.
            index: (B,) position of each image in its data set.
            seed: of the run.
            epoch: counted from 0; one for all images, or (B,).

        Returns:
            (B, C, H, W) uint8 on the same device.
        """
        random = [np.random.default_rng((*key, _STREAM)) for key in image_keys(seed, epoch, index)]
        draws = np.stack([one.random(32) for one in random])
        rows = np.flatnonzero(draws[:, 24] < self.applied)
        if not len(rows):
            return views
        where = send(torch.from_numpy(rows), views.device)
        out = views.clone()
        out[where] = self._changed(views[where], draws[rows], [random[row] for row in rows])
        return out

    def _changed(self, views: Tensor, draws: np.ndarray, random: list[np.random.Generator]) -> Tensor:
        images = views.float() / 255
        images = self._tone(images, draws[:, :10])
        images = self._shade(images, draws[:, 10:14])
        images = self._sharpen(images, draws[:, 14:16])
        images = self._coarsen(images, draws[:, 16:18])
        images = self._noise(images, draws[:, 18:20], random)
        images = self._mark(images, draws[:, 20:22], random)
        out = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return self._compress(out, draws[:, 22:24])

    def _tone(self, images: Tensor, draws: np.ndarray) -> Tensor:
        knots = np.linspace(0, 1, _KNOTS)
        random_curves = np.sort(draws[:, 1 : 1 + _KNOTS], axis=1)  # rising, as a window or a screen's curve is
        strength = self.tone_strength * draws[:, 1 + _KNOTS, None] * (draws[:, :1] < self.tone)
        curves = (1 - strength) * knots + strength * random_curves
        other = np.where(np.arange(_KNOTS) == 0, 0, draws[:, 1 : 1 + _KNOTS])
        curves = np.where(draws[:, 2 + _KNOTS, None] < self.sequence, other, curves)
        curves = send(torch.from_numpy(curves.astype(np.float32)), images.device)
        position = images.clamp(0, 1) * (_KNOTS - 1)
        left = position.floor().clamp(max=_KNOTS - 2)
        flat = left.long().flatten(1)
        low, high = curves.gather(1, flat).view_as(images), curves.gather(1, flat + 1).view_as(images)
        return low + (high - low) * (position - left)

    def _shade(self, images: Tensor, draws: np.ndarray) -> Tensor:
        angle, strength = 2 * np.pi * draws[:, 1], self.shading_strength * draws[:, 2]
        strength = strength * (draws[:, 0] < self.shading)
        height, width = images.shape[-2:]
        y = torch.linspace(-1, 1, height, device=images.device)[:, None]
        x = torch.linspace(-1, 1, width, device=images.device)
        slope_x, slope_y, bowl = (
            send(torch.from_numpy(values.astype(np.float32)), images.device).view(-1, 1, 1, 1)
            for values in (strength * np.cos(angle), strength * np.sin(angle), strength * (2 * draws[:, 3] - 1))
        )
        return images * (1 + slope_x * x + slope_y * y + bowl * (x**2 + y**2 - 2 / 3)).clamp(min=0)

    def _sharpen(self, images: Tensor, draws: np.ndarray) -> Tensor:
        out = images.clone()
        side = max(images.shape[-2:])
        # below half of the probability: blur; above: unsharp masking with the same kernels
        chosen, level = draws[:, 0] / max(self.sharpness, 1e-9), np.minimum(draws[:, 1] * _LEVELS, _LEVELS - 1)
        for step in range(_LEVELS):
            sigma = self.blur * side * (step + 1) / _LEVELS
            rows = np.flatnonzero((chosen < 1) & (level.astype(int) == step))
            if not len(rows):
                continue
            where = send(torch.from_numpy(rows), images.device)
            blurred = gaussian_blur(images[where], [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma] * 2)
            unsharp = send(torch.from_numpy(chosen[rows] >= 0.5), images.device).view(-1, 1, 1, 1)
            out[where] = torch.where(unsharp, 2 * images[where] - blurred, blurred)
        return out.clamp(0, 1)

    def _coarsen(self, images: Tensor, draws: np.ndarray) -> Tensor:
        out = images.clone()
        level = np.minimum(draws[:, 1] * _LEVELS, _LEVELS - 1).astype(int)
        for step in range(_LEVELS):
            rows = np.flatnonzero((draws[:, 0] < self.coarse) & (level == step))
            if not len(rows):
                continue
            share = self.coarsest + (1 - self.coarsest) * step / _LEVELS
            size = [max(8, round(share * side)) for side in images.shape[-2:]]
            where = send(torch.from_numpy(rows), images.device)
            small = F.interpolate(images[where], size=size, mode="bilinear", antialias=True)
            out[where] = F.interpolate(small, size=images.shape[-2:], mode="bicubic").clamp(0, 1)
        return out

    def _noise(self, images: Tensor, draws: np.ndarray, random: list[np.random.Generator]) -> Tensor:
        rows = np.flatnonzero(draws[:, 0] < self.noise)
        if not len(rows):
            return images
        shape = (2, 1, *images.shape[-2:])  # of the real and the imaginary part, equal in all channels
        drawn = np.stack([random[row].standard_normal(shape, dtype=np.float32) for row in rows])
        strength = (self.noise_strength * draws[rows, 1]).astype(np.float32).reshape(-1, 1, 1, 1, 1)
        noise = send(torch.from_numpy(drawn * strength), images.device)
        where = send(torch.from_numpy(rows), images.device)
        out = images.clone()
        out[where] = torch.hypot(images[where] + noise[:, 0], noise[:, 1])
        return out

    def _mark(self, images: Tensor, draws: np.ndarray, random: list[np.random.Generator]) -> Tensor:
        rows = np.flatnonzero(draws[:, 0] < self.marks)
        if not len(rows):
            return images
        height, width = images.shape[-2:]
        # Drawn on the host and sent once: a kernel for each bar would take longer than the bars do.
        bars = np.full((len(rows), 1, height, width), -1, dtype=np.float32)
        for place, row in enumerate(rows):
            for _ in range(int(random[row].integers(1, 6))):
                long, thin = random[row].integers(2, max(3, height // 4)), random[row].integers(1, max(2, height // 40))
                tall, wide = (long, thin) if random[row].random() < 0.5 else (thin, long)
                top, left = int(random[row].integers(0, height - tall)), int(random[row].integers(0, width - wide))
                inside = 0.2 * height < top < 0.8 * height and 0.2 * width < left < 0.8 * width
                if not inside:
                    bars[place, :, top : top + tall, left : left + wide] = random[row].uniform(0.4, 1)
        where, drawn = send(torch.from_numpy(rows), images.device), send(torch.from_numpy(bars), images.device)
        out = images.clone()
        out[where] = torch.where(drawn >= 0, drawn, images[where])
        return out

    def _compress(self, views: Tensor, draws: np.ndarray) -> Tensor:
        rows = np.flatnonzero(draws[:, 0] < self.jpeg)
        if not len(rows):
            return views
        where = send(torch.from_numpy(rows), views.device)
        pixels = views[where].cpu().numpy()  # all at once: the step waits for the device once
        for place, row in enumerate(rows):
            quality = round(self.worst_quality + (95 - self.worst_quality) * draws[row, 1])
            pixels[place] = _through_jpeg(pixels[place], quality)
        out = views.clone()
        out[where] = send(torch.from_numpy(pixels), views.device)
        return out


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Code and decode one picture (C, H, W) uint8."""
    coded = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(coded, "JPEG", quality=quality)
    return np.atleast_3d(np.asarray(Image.open(coded))).transpose(2, 0, 1)
