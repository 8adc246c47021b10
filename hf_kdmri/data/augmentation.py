"""Random views of slices, drawn per image, applied to whole batches on the compute device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.data.appearance import RandomAppearance, image_keys
from hf_kdmri.data.transfer import send


@dataclass(frozen=True)
class RandomViews:
    """Geometry and contrast changes that keep the diagnosis.

    The parameters of an image follow from (seed, epoch, index) alone. So a view is the same on any device, in any
    batch, with any number of workers and processes, and after a resume; teacher and student see the same one.

    Resampling smooths. Views that were all turned and zoomed bilinearly would never be as sharp as the slices that a
    model is tested on: a teacher trained so had 90.7 % on test slices, and 96.6 % on the same slices turned by 3°. So
    the interpolation is bicubic, and a share of the views is not moved at all and keeps its pixels, flipped or not.

    Args:
        moved: probability that rotation, zoom and shift are applied.
        rotation: largest angle, degrees, either way.
        scale: smallest and largest zoom.
        translation: largest shift as a share of the side, either way.
        flip: probability of a left-right flip.
        contrast: smallest and largest factor around the image's mean.
        gamma: largest exponent; the smallest is its inverse.
        aspect: largest change of height against width, a share.
        appearance: what is done to the picture's tones and texture afterwards; None for nothing.
    """

    moved: float = 0.7
    rotation: float = 20.0
    scale: tuple[float, float] = (0.8, 1.2)
    translation: float = 0.08
    flip: float = 0.5
    contrast: tuple[float, float] = (0.7, 1.3)
    gamma: float = 1.5
    aspect: float = 0.0
    appearance: RandomAppearance | None = None

    def __call__(
        self, views: Tensor, index: Tensor | np.ndarray, *, seed: int, epoch: int | Tensor | np.ndarray
    ) -> Tensor:
        """Draw and apply one view per image: `with_masks` for images that have none."""
        return self.with_masks(views, None, index, seed=seed, epoch=epoch)[0]

    def with_masks(
        self,
        views: Tensor,
        masks: Tensor | None,
        index: Tensor | np.ndarray,
        *,
        seed: int,
        epoch: int | Tensor | np.ndarray,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw and apply one view per image, and move its mask along.

        Args:
            views: (B, C, H, W) uint8.
            masks: (B, 1, H, W) uint8, or None.
            index: (B,) position of each image in its data set; a NumPy array, or a tensor, which the step waits for
                where it is on an accelerator.
            seed: of the run.
            epoch: counted from 0; one for all images, or (B,) where a batch holds images of several passes.

        Returns:
            The views and the masks, uint8 on the same device, in the shapes given.
        """
        keys = image_keys(seed, epoch, index)
        draws = np.stack([np.random.default_rng(key).random(9) for key in keys])
        height, width = views.shape[-2:]
        # All is drawn and worked out on the host, so nobody waits for the device.
        moved, mirrored = draws[:, 7] < self.moved, draws[:, 1] < self.flip
        turned, still, flipped, sources, of_turned, of_still = (
            send(torch.from_numpy(values), views.device)
            for values in (
                np.flatnonzero(moved),
                np.flatnonzero(~moved),
                np.flatnonzero(mirrored & ~moved),
                self._sources(draws[moved].T, height, width),
                self._tones(draws[moved].T),
                self._tones(draws[~moved].T),
            )
        )
        out, masks = views.clone(), None if masks is None else masks.clone()
        for images in (out,) if masks is None else (out, masks):
            images.index_copy_(0, flipped, images.index_select(0, flipped).flip(-1))
        with torch.autocast(views.device.type, enabled=False), torch.autocast("cpu", enabled=False):
            out.index_copy_(0, still, _toned(out.index_select(0, still).float(), of_still))
            if len(turned):
                grid = _sampling_grid(sources, height, width)
                out.index_copy_(0, turned, _toned(_sampled(out, turned, grid, mode="bicubic"), of_turned))
                if masks is not None:
                    masks.index_copy_(0, turned, _sampled(masks, turned, grid, mode="nearest").to(torch.uint8))
        if self.appearance is not None:
            out = self.appearance(out, index, seed=seed, epoch=epoch)
        return out, masks

    def _sources(self, draw: NDArray[np.float64], height: int, width: int) -> NDArray[np.float32]:
        """(N, 2, 3), from a place in a moved view to the one in its slice; -1 and 1 are the outer pixels' centres.

        The inverse of zoom, then rotation about the centre, then shift (kornia's `get_affine_matrix2d`).
        """
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[0]
        wider = 1 + self.aspect * (2 * draw[8] - 1)
        zoom_x, zoom_y = zoom * wider * np.where(draw[1] < self.flip, -1, 1), zoom / wider
        shift = (2 * draw[2:4] - 1) * [[width], [height]] * self.translation
        angle = np.deg2rad((2 * draw[4] - 1) * self.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.stack([[cos / zoom_x, sin / zoom_x], [-sin / zoom_y, cos / zoom_y]])
        side = np.array([width - 1, height - 1])
        turn *= (side / side[:, None])[..., None]
        constant = -np.einsum("ijn,jn->in", turn, 2 * shift / side[:, None])
        return np.concatenate([turn, constant[:, None]], 1).transpose(2, 0, 1).astype(np.float32)

    def _tones(self, draw: NDArray[np.float64]) -> NDArray[np.float32]:
        """(4, B, 1, 1, 1): contrast, its complement, γ, and 255^(1 − γ), which turns x^γ to 255 (x / 255)^γ."""
        contrast = self.contrast[0] + (self.contrast[1] - self.contrast[0]) * draw[5]
        gamma = self.gamma ** (2 * draw[6] - 1)
        rows = np.stack([contrast, 1 - contrast, gamma, 255 ** (1 - gamma)])
        return rows.astype(np.float32).reshape(4, -1, 1, 1, 1)


def _sampling_grid(sources: Tensor, height: int, width: int) -> Tensor:
    """What `torch.nn.functional.affine_grid` gives, in float32 even where matrix products are in TF32, and faster.

    Args:
        sources: (N, 2, 3) as there.
        height: of the views, pixels.
        width: likewise.

    Returns:
        (N, H, W, 2), x before y.
    """
    grid = sources.new_empty(len(sources), height, width, 2)
    x = torch.linspace(-1, 1, width, device=sources.device)
    y = torch.linspace(-1, 1, height, device=sources.device)[:, None]
    for axis in (0, 1):
        of_x, of_y, constant = sources[:, axis, :, None, None].unbind(1)
        torch.add(of_x * x + constant, of_y * y, out=grid[..., axis])
    return grid


def _sampled(images: Tensor, rows: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    """Float32 pictures of these rows of uint8 ones, resampled at (N, H, W, 2) places."""
    return F.grid_sample(images.index_select(0, rows).float(), grid, mode=mode, align_corners=True)


def _toned(images: Tensor, tones: Tensor) -> Tensor:
    """Change contrast and γ of (B, C, H, W) pictures from 0 to 255, in place, and round them to uint8."""
    contrast, of_mean, gamma, scale = tones
    mean = images.mean((1, 2, 3), keepdim=True)
    images.mul_(contrast).add_(of_mean * mean).clamp_(0, 255)
    return images.pow_(gamma).mul_(scale).round_().to(torch.uint8)


VIEW_STYLES = {
    "plain": RandomViews(),
    # For pictures of other origin: tighter and wider crops, other shapes, and, on 7 views of 10, everything in
    # `RandomAppearance`. Where it was on all of them, 6 % of the views looked as the slices do, and 10 epochs cost a
    # student 3.6 points of validation accuracy (docs/robustness.md).
    "robust": RandomViews(scale=(0.65, 1.4), aspect=0.12, appearance=RandomAppearance(applied=0.7)),
}
