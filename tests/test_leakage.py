from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from hf_kdmri.data import assign_splits, patient_group_of
from hf_kdmri.data.leakage import (
    ORIENTATIONS,
    near_duplicates,
    nearest_neighbor_accuracy,
    nearest_neighbors,
    perceptual_hashes,
    thumbnails,
    turned,
)
from hf_kdmri.data.pictures import PictureError


def scenes(count: int, seed: int = 0, size: int = 128) -> list[np.ndarray]:
    """Independent smooth 8-bit images."""
    rng = np.random.default_rng(seed)
    smooth = [gaussian_filter(rng.normal(size=(size, size)), size / 16) for _ in range(count)]
    return [(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8) for image in smooth]


def jpeg(image: np.ndarray, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def matches(pairs: list) -> list[tuple[int, int]]:
    return sorted((pair.index_a, pair.index_b) for pair in pairs)


@pytest.mark.parametrize("orientation", range(8))
def test_each_orientation_is_found_and_undone(orientation: int) -> None:
    image = scenes(1)[0]
    (pair,) = near_duplicates([image], [turned(image, orientation)])
    assert pair.correlation == pytest.approx(1, abs=1e-3) and pair.distance == 0
    np.testing.assert_array_equal(turned(turned(image, orientation), pair.orientation), image)


def test_the_eight_orientations_differ_and_a_ninth_is_refused() -> None:
    corner = np.arange(6).reshape(2, 3)
    assert len({turned(corner, k).tobytes() + bytes(turned(corner, k).shape) for k in range(8)}) == len(ORIENTATIONS)
    with pytest.raises(ValueError, match="from 0 to 7"):
        turned(corner, 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 30),
        lambda image: (image * 0.5).astype(np.uint8),
        lambda image: np.minimum(image.astype(int) + 30, 255).astype(np.uint8),
        lambda image: image.astype(np.int16) * 17,
        lambda image: Image.fromarray(image).resize((100, 117)),
        lambda image: np.stack([image] * 3, axis=-1),
    ],
    ids=["jpeg", "darker", "brighter", "16 bit", "resized", "colour"],
)
def test_altered_copies_are_found_and_nothing_else(change) -> None:
    images = scenes(12)
    copies = [change(np.ascontiguousarray(turned(image, k % 8))) for k, image in enumerate(images)]
    assert matches(near_duplicates(images, copies)) == [(k, k) for k in range(12)]


def test_independent_images_are_not_reported() -> None:
    assert near_duplicates(scenes(150), scenes(150, seed=1)) == []
    assert near_duplicates(scenes(150)) == []


def test_a_set_against_itself_gives_each_pair_once_in_order_of_suspicion() -> None:
    images = scenes(5)
    rng = np.random.default_rng(3)
    noisy = np.clip(images[1] + rng.normal(0, 12, images[1].shape), 0, 255).astype(np.uint8)
    pairs = near_duplicates([*images, noisy, images[3]])
    assert [(pair.index_a, pair.index_b) for pair in pairs] == [(3, 6), (1, 5)]
    assert pairs[0].correlation > pairs[1].correlation > 0.96


def test_limits_are_used_and_checked() -> None:
    images = scenes(30)
    everything = near_duplicates(images, max_distance=64, min_correlation=-1)
    assert len(everything) == 30 * 29 / 2
    strict = near_duplicates(images, max_distance=20, min_correlation=0.2)
    assert all(pair.distance <= 20 and pair.correlation >= 0.2 for pair in strict)
    with pytest.raises(ValueError, match="max_distance is 65"):
        near_duplicates(images, max_distance=65)
    with pytest.raises(ValueError, match="min_correlation is 2"):
        near_duplicates(images, min_correlation=2)


def test_images_of_one_grey_value_match_nothing() -> None:
    flat = np.full((64, 64), 130, np.uint8)
    assert near_duplicates([flat, flat, np.zeros((64, 64), np.uint8)], min_correlation=0.5) == []


def test_empty_sets_have_no_pairs() -> None:
    assert near_duplicates([], scenes(2)) == near_duplicates(scenes(2), []) == near_duplicates([]) == []


def test_hash_ignores_brightness_and_contrast() -> None:
    image = scenes(1)[0].astype(np.float32)
    first, second = perceptual_hashes([image, 0.3 * image + 40])
    assert first.shape == (64,) and set(first) == {-1, 1}
    np.testing.assert_array_equal(first, second)


def test_thumbnails_take_every_form_of_picture_and_pass_unchanged(tmp_path: Path) -> None:
    image = scenes(1)[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    stored = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column(
        "image", datasets.Image(decode=False)
    )
    forms = [image, Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png"), stored[0]["image"]]
    small = thumbnails(forms)
    assert small.shape == (5, 48, 48) and small.dtype == np.float32
    assert (small == small[0]).all()
    assert thumbnails(small) is small
    assert thumbnails(image for image in forms).shape == (5, 48, 48)


def test_a_quickly_decoded_jpeg_is_the_same_picture(tmp_path: Path) -> None:
    image = scenes(1, size=512)[0]
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
    (pair,) = near_duplicates([tmp_path / "a.jpg"], [image])
    assert pair.correlation > 0.999


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    for name in ("broken.png", "broken.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(PictureError, match=f"{name}.* cannot be read as a picture"):
            thumbnails([scenes(1)[0], tmp_path / name])
    with pytest.raises(PictureError, match=r"image 1 is an array \(2, 2, 2\)"):
        thumbnails([scenes(1)[0], np.zeros((2, 2, 2))])
    with pytest.raises(ValueError, match=r"image 0 .*not finite"):
        thumbnails([np.full((8, 8), np.nan)])
    with pytest.raises(ValueError, match="not finite"):
        thumbnails(np.full((1, 48, 48), np.inf, np.float32))


def test_nearest_neighbor_by_hand() -> None:
    train = scenes(6)
    test = [np.clip(train[k] * 0.8 + 10, 0, 255).astype(np.uint8) for k in (4, 0, 5)]
    nearest, correlation = nearest_neighbors(train, test)
    assert nearest.tolist() == [4, 0, 5] and (correlation > 0.99).all()
    assert nearest_neighbor_accuracy(train, [0, 0, 0, 1, 1, 2], test, [1, 0, 0]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="6 training images, 5 labels"):
        nearest_neighbor_accuracy(train, [0] * 5, test, [0] * 3)
    with pytest.raises(ValueError, match="0 test images"):
        nearest_neighbor_accuracy(train, [0] * 6, [], [])
    with pytest.raises(ValueError, match="no training images"):
        nearest_neighbors([], test)


@pytest.mark.real_data
@pytest.mark.slow
def test_the_published_figures_on_the_real_slices(figshare_dir: Path) -> None:
    with open(figshare_dir / "slices.csv", newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["slice"]))
    numbers, pids = [int(row["slice"]) for row in rows], [row["pid"] for row in rows]
    labels = np.array([int(row["label"]) - 1 for row in rows])
    start = time.perf_counter()
    small = thumbnails(figshare_dir / "images" / f"{number}.jpg" for number in numbers)
    pairs = near_duplicates(small)
    accuracy = {}
    for config in ("patient_groups", "cvind", "random_slices"):
        right = 0.0
        for fold in range(5):
            test = np.array(assign_splits(pids, labels.tolist(), numbers, config, fold)) == "test"
            right += test.sum() * nearest_neighbor_accuracy(small[~test], labels[~test], small[test], labels[test])
        accuracy[config] = right / len(rows)
    assert time.perf_counter() - start < 60
    assert accuracy["random_slices"] == pytest.approx(0.941, abs=0.01)  # as published
    assert accuracy["cvind"] == pytest.approx(0.705, abs=0.015)
    assert accuracy["patient_groups"] == pytest.approx(0.69, abs=0.02)
    assert len(pairs) > 400
    assert all(patient_group_of(pids[pair.index_a]) == patient_group_of(pids[pair.index_b]) for pair in pairs)
    assert {pair.orientation for pair in pairs} == {0}
