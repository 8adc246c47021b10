"""Random views of slices, drawn per image, applied to whole batches on the compute device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from kornia.geometry.conversions import normalize_homography
from kornia.geometry.transform import get_affine_matrix2d
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
        draws = np.stack([np.random.default_rng(key).random(9) for key in keys]).astype(np.float32)
        drawn = torch.from_numpy(draws)
        images = views.float()
        height, width = images.shape[-2:]
        with torch.autocast(views.device.type, enabled=False), torch.autocast("cpu", enabled=False):
            # Which views are moved is known on the host, so nobody waits for the device to tell their number.
            moved, mirrored = draws[:, 7] < np.float32(self.moved), draws[:, 1] < np.float32(self.flip)
            turned, flipped = (torch.from_numpy(np.flatnonzero(rows)) for rows in (moved, mirrored & ~moved))
            sources = self._sources(drawn.index_select(0, turned).unbind(1), height, width)
            turned, flipped, sources = (send(values, views.device) for values in (turned, flipped, sources))
            grid = _sampling_grid(sources, height, width)
            images = _placed(images, grid, turned, flipped, mode="bicubic")
            if masks is not None:
                placed = _placed(masks.to(torch.float32, copy=True), grid, turned, flipped, mode="nearest")
                masks = placed.to(torch.uint8)
            draw = send(drawn, views.device).unbind(1)
            low, high = self.contrast
            contrast = (low + (high - low) * draw[5]).view(-1, 1, 1, 1)
            mean = images.mean((1, 2, 3), keepdim=True)
            images.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255)
            gamma = (self.gamma ** (2 * draw[6] - 1)).view(-1, 1, 1, 1)
            images.pow_(gamma).mul_(255 ** (1 - gamma))  # 255 (x / 255)^γ
        out = images.round_().to(torch.uint8)
        if self.appearance is not None:
            out = self.appearance(out, index, seed=seed, epoch=epoch)
        return out, masks

    def _sources(self, draw: tuple[Tensor, ...], height: int, width: int) -> Tensor:
        """(N, 2, 3), from a place in a moved view to the one in its slice; -1 and 1 are the outer pixels' centres."""
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[0]
        wider = 1 + self.aspect * (2 * draw[8] - 1)
        mirror = torch.where(draw[1] < self.flip, -1.0, 1.0)
        shift = torch.stack([(2 * draw[2] - 1) * width, (2 * draw[3] - 1) * height], 1) * self.translation
        angle = (2 * draw[4] - 1) * self.rotation
        centre = draw[0].new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(draw[0]), 2)
        moves = get_affine_matrix2d(shift, centre, torch.stack([zoom * mirror * wider, zoom / wider], 1), angle)
        moves = normalize_homography(moves, (height, width), (height, width))
        return torch.linalg.inv_ex(moves).inverse[:, :2].contiguous()


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


def _placed(images: Tensor, grid: Tensor, turned: Tensor, flipped: Tensor, *, mode: str) -> Tensor:
    """Resample some images and mirror others, in place; the rest keep their pixels.

    Args:
        images: (B, C, H, W), floating point.
        grid: (N, H, W, 2), where the pixels of those that are resampled come from.
        turned: (N,) their rows.
        flipped: (M,) rows of those that are mirrored alone.
        mode: of interpolation.
    """
    if len(turned):
        chosen = images.index_select(0, turned)
        images.index_copy_(0, turned, F.grid_sample(chosen, grid, mode=mode, align_corners=True))
    if len(flipped):
        images.index_copy_(0, flipped, images.index_select(0, flipped).flip(-1))
    return images


VIEW_STYLES = {
    "plain": RandomViews(),
    # For pictures of other origin: tighter and wider crops, other shapes, and, on 7 views of 10, everything in
    # `RandomAppearance`. Where it was on all of them, 6 % of the views looked as the slices do, and 10 epochs cost a
    # student 3.6 points of validation accuracy (docs/robustness.md).
    "robust": RandomViews(scale=(0.65, 1.4), aspect=0.12, appearance=RandomAppearance(applied=0.7)),
}
