"""The plane of a slice: what it must not depend on, and how often it is right."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hf_kdmri.data import PLANES, published_patients, slice_plane
from hf_kdmri.data.planes import HAND_LABELS_FILE, plane_features


@pytest.fixture(scope="module")
def hand_labels() -> list[dict[str, str]]:
    with open(HAND_LABELS_FILE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def head() -> np.ndarray:
    """A bright ellipse with one dark side on black, (120, 120)."""
    y, x = np.mgrid[:120, :120]
    inside = ((x - 62) / 40) ** 2 + ((y - 55) / 50) ** 2 < 1
    return (inside * (100 + x)).astype(np.int16)


def test_brightness_contrast_and_type_do_not_matter(head):
    for other in (head * 7, head.astype(np.float64) * 0.03 + 11, head.astype(np.int32) - 500, head.astype(np.uint8)):
        np.testing.assert_allclose(plane_features(other), plane_features(head), atol=1e-4)


def test_place_and_size_of_the_head_change_the_box_only(head):
    shifted = np.roll(head, (12, -15), (0, 1))
    np.testing.assert_allclose(plane_features(shifted)[:384], plane_features(head)[:384], atol=0.6)
    assert np.abs(plane_features(shifted)[385:] - plane_features(head)[385:]).max() > 0.09


def test_symmetric_head_has_no_asymmetry():
    image = np.zeros((128, 128))
    image[20:84, 16:112] = 200 + np.abs(np.arange(96) - 47.5) + np.arange(64)[:, None]
    np.testing.assert_allclose(plane_features(image)[256:384], 0, atol=1e-5)


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.ones((256, 300)), np.eye(4), np.full((1, 1), 7)])
def test_any_picture_gets_an_answer(image):
    assert slice_plane(image) in PLANES


def test_samples_share_no_patient(hand_labels):
    assert Counter(row["used_for"] for row in hand_labels) == {"fit": 480, "check": 240}
    assert len({row["slice"] for row in hand_labels}) == 720
    assert {row["plane"] for row in hand_labels} == set(PLANES)


@pytest.mark.real_data
def test_accuracy_on_the_hand_checked_slices(figshare_dir, hand_labels):
    """What `dataset_script/README.md` says; the slices of the fitted patients are not counted."""
    with open(figshare_dir / "slices.csv", newline="", encoding="utf-8") as file:
        pids = {row["slice"]: row["pid"] for row in csv.DictReader(file)}
    parts = {"fit": set(range(8)), "check": {8, 9}}
    assert all(published_patients()[pids[row["slice"]]].part in parts[row["used_for"]] for row in hand_labels)
    checked = [row for row in hand_labels if row["used_for"] == "check"]
    told = [slice_plane(np.asarray(Image.open(figshare_dir / f"images/{row['slice']}.jpg"))) for row in checked]
    right = sum(plane == row["plane"] for plane, row in zip(told, checked, strict=True))
    assert right == 237
