"""Slices as other places might show them: there is no set of pictures of other origin here to choose by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.data.appearance import RandomAppearance

OTHER_LOOK = RandomAppearance(
    tone=0.8, sequence=0.2, shading=0.4, sharpness=0.5, coarse=0.5, noise=0.3, marks=0.3, jpeg=0.8
)
VIEW_SIZE = 224
LOOKS = 3  # random looks of each picture


def altered_views(pictures: Tensor) -> dict[str, list[Tensor]]:
    """The pictures as they are and as altered.

    Args:
        pictures: (N, C, S, S) uint8.

    Returns:
        `clean`; `cropped`: cut to the head and stretched to a square, as most pictures on the web are; and `other
        look`: the same with a random tone curve, sharpness, noise, marks and JPEG, all of them more likely than in
        training, three times.
    """
    cropped, index = torch.stack([crop_to_head(picture) for picture in pictures]), torch.arange(len(pictures))
    looks = [OTHER_LOOK(cropped, index, seed=1, epoch=draw) for draw in range(LOOKS)]
    return {"clean": [pictures], "cropped": [cropped], "other look": looks}


def crop_to_head(picture: Tensor, threshold: int = 25) -> Tensor:
    """Cut (C, S, S) to the rows and columns in which more than 2 % of the pixels are bright, and stretch it back."""
    bright = (picture.amax(0) > threshold).float()
    rows, columns = ((bright.mean(axis) > 0.02).nonzero().flatten() for axis in (1, 0))
    if len(rows) < 2 or len(columns) < 2:
        return picture
    cut = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = picture.shape[-1]
    return (
        F.interpolate(cut[None].float(), (side, side), mode="bicubic", antialias=True)[0].round().clamp(0, 255).byte()
    )
