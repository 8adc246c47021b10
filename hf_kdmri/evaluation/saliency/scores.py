"""Saliency maps against tumour masks: pointing game and energy, each beside what chance would give in that slice.

Chance is taken over the head and not over the image. Half of a slice is black air, so a map that merely finds the head
would look twice as good as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from kornia.filters import otsu_threshold
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch.nn import functional as F

TOLERANCE = 15.0  # pixels of a slice of 512
_REFERENCE_SIDE = 512
_AIR_SHARE = 0.5  # of Otsu's threshold; see head_mask
_METRICS = ("hit", "tolerant_hit", "energy", "chance", "tolerant_chance")
ALL_CLASSES = "all classes"


@dataclass(frozen=True)
class SaliencyScores:
    """One value per image; NaN where an image could not be scored, and then `problems` says why.

    Args:
        hit: (N,) 1 where the map's highest pixel lies in the mask, else 0.
        tolerant_hit: (N,) likewise, in the mask or at most the tolerance away from it.
        energy: (N,) share of the map's sum that lies in the mask, 0–1.
        chance: (N,) share of the head that the mask takes: what a point drawn at random in the head would hit, and
            what an even map over the head would have as energy.
        tolerant_chance: (N,) likewise of the mask with its margin.
        problems: N reasons, empty where the image was scored.
    """

    hit: NDArray[np.float64]
    tolerant_hit: NDArray[np.float64]
    energy: NDArray[np.float64]
    chance: NDArray[np.float64]
    tolerant_chance: NDArray[np.float64]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images, scored or not."""
        return len(self.problems)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(N,) True where there are values."""
        return np.array([not problem for problem in self.problems], dtype=bool)


@dataclass(frozen=True)
class SaliencySummary:
    """Means over the scored images of one class, or of all.

    Args:
        n: images scored.
        left_out: images that could not be scored.
        hit: pointing game, 0–1; NaN if none was scored, as are the following.
        tolerant_hit: pointing game with tolerance.
        energy: energy in the mask.
        chance: chance of `hit` and `energy`.
        tolerant_chance: chance of `tolerant_hit`.
    """

    n: int
    left_out: int
    hit: float
    tolerant_hit: float
    energy: float
    chance: float
    tolerant_chance: float


def saliency_scores(
    maps: Iterable[ArrayLike | torch.Tensor],
    images: Iterable[Any],
    masks: Iterable[Any],
    *,
    tolerance: float = TOLERANCE,
) -> SaliencyScores:
    """Score each map against its mask at the mask's own size.

    A map of another size is brought to the mask's bilinearly, since a classifier's input is the whole slice squeezed
    into its square. The map's highest pixel is that of `saliency_peak`.

    Args:
        maps: N maps (h, w), not negative. Like the others read once and one at a time, so generators do.
        images: N slices as PIL images or arrays, (H, W) or (H, W, 3), in any range of intensities: only their head
            is used.
        masks: N masks (H, W) of the same sizes, not zero in the tumour.
        tolerance: margin around the mask for `tolerant_hit`, in pixels of a slice with a longer side of 512 (15 are
            7.4 mm where a pixel has 0.49 mm). It scales with the slice: 7.5 pixels of one of 256.

    Returns:
        Values per image. Not scored, with the reason in `problems`: an empty mask, a constant map, an image without a
        head, or a mask of which less than half lies in the head that was found.

    Raises:
        ValueError: different numbers of maps, images and masks, none at all, shapes that do not fit, a map with
            negative or infinite values, or a negative tolerance.

    Example:
        >>> image = np.zeros((64, 64)); image[8:56, 8:56] = 100
        >>> mask = np.zeros((64, 64), bool); mask[20:32, 20:32] = True
        >>> scores = saliency_scores([mask.astype(float), np.zeros((64, 64))], [image] * 2, [mask] * 2)
        >>> scores.hit, scores.energy, scores.chance[0] == 12**2 / 48**2
        (array([ 1., nan]), array([ 1., nan]), np.True_)
        >>> scores.problems
        ('', 'constant map')
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; give pixels of a 512-pixel slice, 0 or more")
    values: list[tuple[float, ...]] = []
    problems: list[str] = []
    for index, (saliency, image, mask) in enumerate(_in_step(maps, images, masks)):
        row, problem = _score(*_checked(index, saliency, image, mask), tolerance)
        values.append(row)
        problems.append(problem)
    if not values:
        raise ValueError("there is nothing to score: 0 maps, images and masks")
    columns = dict(zip(_METRICS, np.array(values, dtype=np.float64).T, strict=True))
    return SaliencyScores(**columns, problems=tuple(problems))


def summarize_saliency(
    scores: SaliencyScores, labels: Sequence[int] | NDArray[np.integer], class_names: Sequence[str]
) -> dict[str, SaliencySummary]:
    """Average scores per class and over all; intervals over patients are the caller's, from the values per image.

    Args:
        scores: of N images.
        labels: (N,) class of each image, 0..C-1.
        class_names: C names in label order.

    Returns:
        One summary for each name, in order, and one for "all classes", in which every image counts once.

    Raises:
        ValueError: labels of another length or out of range, doubled names, or a class called "all classes".
    """
    classes = np.asarray(labels)
    if classes.shape != (len(scores),) or classes.min() < 0 or classes.max() >= len(class_names):
        raise ValueError(
            f"expected {len(scores)} labels in 0..{len(class_names) - 1}, one for each image; got shape "
            f"{classes.shape} and values {sorted(set(classes.ravel().tolist()))[:5]}"
        )
    if ALL_CLASSES in class_names or len(set(class_names)) != len(class_names):
        raise ValueError(f"class_names are {list(class_names)}; expected different names, none of them {ALL_CLASSES!r}")
    members = {name: classes == number for number, name in enumerate(class_names)}
    members[ALL_CLASSES] = np.ones(len(scores), dtype=bool)
    return {name: _summary(scores, chosen) for name, chosen in members.items()}


def saliency_peak(saliency: NDArray[np.floating]) -> tuple[int, int]:
    """Return row and column of a map's highest pixel; of several equally high ones, that nearest to their centre.

    Equally high ones are common: enlarged bilinearly, a map that is highest at its edge has a plateau there.
    """
    highest = saliency.max()
    ties = np.argwhere(saliency >= highest - 1e-6 * abs(highest))
    row, column = ties[np.argmin(((ties - ties.mean(axis=0)) ** 2).sum(axis=1))]
    return int(row), int(column)


def head_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the head: brighter than half of Otsu's threshold, holes filled, the largest connected piece.

    Otsu's own threshold divides bright from dark tissue in many sagittal and coronal slices and loses the skull; half
    of it lies between air and tissue.

    Args:
        image: (H, W) intensities in any range.

    Returns:
        (H, W), True in the head; all False for a constant image.
    """
    pixels = np.asarray(image, dtype=np.float32)
    darkest = pixels.min()
    if pixels.max() == darkest:
        return np.zeros(pixels.shape, dtype=bool)
    pixels = pixels - darkest  # half of a threshold has a meaning above the air only
    _, threshold = otsu_threshold(torch.from_numpy(pixels)[None, None])
    filled = ndimage.binary_fill_holes(pixels > _AIR_SHARE * float(threshold))
    pieces, count = ndimage.label(filled)
    if not count:
        return np.zeros(pixels.shape, dtype=bool)
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def _in_step(*sequences: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    missing = object()
    for index, items in enumerate(zip_longest(*sequences, fillvalue=missing)):
        if any(item is missing for item in items):
            raise ValueError(f"expected equally many maps, images and masks; one of them ends after {index}")
        yield items


def _checked(
    index: int, saliency: Any, image: Any, mask: Any
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.bool_]]:
    """Return a map at the mask's size, a grey image and a boolean mask, or refuse them by number."""
    if isinstance(saliency, torch.Tensor):
        saliency = saliency.detach().float().cpu()
    values, pixels, inside = np.asarray(saliency, dtype=np.float64), np.asarray(image), np.asarray(mask) != 0
    if pixels.ndim == 3:
        pixels = pixels[..., :3].mean(axis=-1)
    if values.ndim != 2 or inside.ndim != 2 or pixels.shape != inside.shape:
        raise ValueError(
            f"number {index} has a map of shape {values.shape}, an image of {pixels.shape} and a mask of "
            f"{inside.shape}; expected (h, w) and twice the same (H, W)"
        )
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(
            f"map {index} has values from {values.min()} to {values.max()}; expected finite ones of 0 or more"
        )
    if values.shape != inside.shape:
        enlarged = F.interpolate(torch.from_numpy(values)[None, None], size=inside.shape, mode="bilinear")
        values = enlarged[0, 0].numpy()
    return values, pixels, inside


def _score(
    saliency: NDArray[np.float64], image: NDArray[Any], mask: NDArray[np.bool_], tolerance: float
) -> tuple[tuple[float, ...], str]:
    """The values of one image in the order of `_METRICS`, and what kept it from being scored."""
    unscored = (np.nan,) * len(_METRICS)
    if not mask.any():
        return unscored, "empty mask"
    if np.ptp(saliency) == 0:
        return unscored, "constant map"
    head = head_mask(image)
    if not head.any():
        return unscored, "no head: constant image"
    if (mask & head).sum() < 0.5 * mask.sum():
        return unscored, "less than half of the mask lies in the head that was found"
    distance = ndimage.distance_transform_edt(~mask)
    near = distance <= tolerance * max(mask.shape) / _REFERENCE_SIDE
    peak = saliency_peak(saliency)
    size = head.sum()
    row = (
        float(mask[peak]),
        float(near[peak]),
        float(saliency[mask].sum() / saliency.sum()),
        float((mask & head).sum() / size),
        float((near & head).sum() / size),
    )
    return row, ""


def _summary(scores: SaliencyScores, chosen: NDArray[np.bool_]) -> SaliencySummary:
    kept = chosen & scores.scored
    n = int(kept.sum())
    means = {name: float(getattr(scores, name)[kept].mean()) if n else float("nan") for name in _METRICS}
    return SaliencySummary(n=n, left_out=int(chosen.sum()) - n, **means)
