"""Axial, coronal or sagittal: the plane of a head slice, derived from its picture because the files do not say."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

PLANES = ("axial", "coronal", "sagittal")
WEIGHTS_FILE = Path(__file__).with_name("plane_weights.csv")
HAND_LABELS_FILE = Path(__file__).with_name("figshare_planes.csv")  # slice, plane, used_for

_RASTER = 128  # pixels; the whole slice, on which the head is found
_THUMBNAIL = 16  # pixels; the head alone
_HEAD_LEVEL = 0.25  # of the 95th percentile: what is brighter is head


def slice_plane(image: np.ndarray) -> str:
    """Name the plane of a head slice.

    A multinomial logistic regression on a 16 × 16 thumbnail of the head's bounding box, its difference from its mirror
    image, and the box' shape and place. Brightness and contrast do not matter; the slice must be upright.

    It was fitted to 480 Figshare slices labelled by eye, of patients that are not among the 240 slices it was checked
    on once: see `dataset_script/README.md` for the accuracy. On other pictures than T1-weighted slices of heads the
    answer means nothing.

    Args:
        image: (H, W) intensities of any numeric type.

    Returns:
        "axial", "coronal" or "sagittal".

    Example:
        >>> slice_plane(np.zeros((64, 64))) in PLANES
        True
    """
    weights, intercept = _weights()
    return PLANES[int(np.argmax(weights @ plane_features(image) + intercept))]


def plane_features(image: np.ndarray) -> np.ndarray:
    """What the plane is told from.

    Args:
        image: (H, W) intensities.

    Returns:
        (389,) float64: thumbnail (16 · 16) with mean 0 and standard deviation 1, its left half's difference from the
        mirror image (16 · 8), the box' height by width, and its distance from the four edges as a share of the slice.
    """
    whole = Image.fromarray(np.ascontiguousarray(image, np.float32))
    if whole.size == (4 * _RASTER, 4 * _RASTER):
        whole = whole.reduce(4)  # the same means, in two thirds of the time
    else:
        whole = whole.resize((_RASTER, _RASTER), Image.Resampling.BOX)
    pixels = np.asarray(whole)
    top, bottom, left, right = _head_box(pixels - pixels.min())
    head = whole.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, (left, top, right, bottom))
    thumbnail = np.asarray(head, np.float64)
    thumbnail = (thumbnail - thumbnail.mean()) / max(thumbnail.std(), 1e-6)
    asymmetry = np.abs(thumbnail - thumbnail[:, ::-1])[:, : _THUMBNAIL // 2]
    place = np.array([top, _RASTER - bottom, left, _RASTER - right]) / _RASTER
    return np.concatenate([thumbnail.ravel(), asymmetry.ravel(), [(bottom - top) / (right - left)], place])


def _head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns of which more than a twentieth is bright: top, bottom, left, right, the ends excluded."""
    bright = pixels > _HEAD_LEVEL * np.percentile(pixels, 95)
    rows, columns = (np.flatnonzero(bright.mean(axis) > 0.05) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0, _RASTER, 0, _RASTER
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@lru_cache(maxsize=1)
def _weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights (3, 389) and intercept (3,)."""
    table = np.loadtxt(WEIGHTS_FILE, delimiter=",", ndmin=2)
    return table[:, :-1], table[:, -1]
