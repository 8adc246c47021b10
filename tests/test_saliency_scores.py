from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_kdmri.evaluation.saliency.scores import (
    head_mask,
    saliency_peak,
    saliency_scores,
    summarize_saliency,
)


def slice_of(size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A square head over three quarters of each side, with a square tumour of an eighth."""
    image, mask = np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    image[size // 8 : -size // 8, size // 8 : -size // 8] = 90
    mask[size // 2 : size * 5 // 8, size // 2 : size * 5 // 8] = True
    image[mask] = 200
    return image, mask


def peak_at(row: int, column: int, size: int = 128) -> np.ndarray:
    saliency = np.zeros((size, size))
    saliency[row, column] = 1
    return saliency


def test_hits_and_chance_by_hand() -> None:
    image, mask = slice_of()
    # 15 pixels of 512 are 3.75 of 128; the tumour ends at row and column 79
    points = [(70, 70), (82, 70), (83, 70), (82, 82), (20, 20)]
    scores = saliency_scores([peak_at(*point) for point in points], [image] * 5, [mask] * 5)
    assert scores.hit.tolist() == [1, 0, 0, 0, 0]
    assert scores.tolerant_hit.tolist() == [1, 1, 0, 0, 0]  # (82, 82) is 4.24 away
    assert scores.energy.tolist() == [1, 0, 0, 0, 0]
    assert scores.chance == pytest.approx([16**2 / 96**2] * 5)
    corners = 4 * sum(a * a + b * b <= 3.75**2 for a in (1, 2, 3) for b in (1, 2, 3))
    assert scores.tolerant_chance == pytest.approx([(16**2 + 4 * 16 * 3 + corners) / 96**2] * 5)
    assert scores.scored.all() and len(scores) == 5


def test_an_even_map_over_the_head_has_the_energy_of_chance() -> None:
    image, mask = slice_of()
    scores = saliency_scores([head_mask(image).astype(float)], [image], [mask])
    assert scores.energy == pytest.approx(scores.chance)


@pytest.mark.parametrize(("size", "distance", "near"), [(512, 15, 1), (512, 16, 0), (256, 7, 1), (256, 8, 0)])
def test_the_tolerance_scales_with_the_slice(size, distance, near) -> None:
    image, mask = slice_of(size)
    scores = saliency_scores([peak_at(size * 5 // 8 - 1 + distance, size // 2, size)], [image], [mask])
    assert scores.tolerant_hit[0] == near
    none = saliency_scores([peak_at(size * 5 // 8, size // 2, size)], [image], [mask], tolerance=0)
    assert none.tolerant_hit[0] == none.hit[0] == 0
    assert none.tolerant_chance == none.chance


def test_coarse_maps_tensors_generators_colour_and_pictures() -> None:
    image, mask = slice_of()
    coarse = torch.zeros(8, 8, requires_grad=True) + 0
    coarse[4, 4] = 1  # rows and columns 64 to 79: the tumour
    pictures = (Image.fromarray(image).convert(mode) for mode in ("L", "RGB"))
    masks = (Image.fromarray(mask.astype(np.uint8) * 255) for _ in range(2))
    scores = saliency_scores((coarse for _ in range(2)), pictures, masks)
    assert scores.hit.tolist() == [1, 1]
    assert scores.energy == pytest.approx([0.5625] * 2)  # (3/4)², the share of a bilinear peak within its cell
    assert scores.chance[0] == scores.chance[1] == 16**2 / 96**2


def test_what_cannot_be_scored_is_told_and_left_out_of_the_means() -> None:
    image, mask = slice_of()
    outside = np.zeros_like(mask)
    outside[:4, :4] = True
    flat = np.full_like(image, 7)
    scores = saliency_scores(
        [peak_at(70, 70), np.ones((8, 8)), peak_at(70, 70), peak_at(70, 70), peak_at(2, 2)],
        [image, image, image, flat, image],
        [mask, mask, np.zeros_like(mask), mask, outside],
    )
    assert scores.problems == (
        "",
        "constant map",
        "empty mask",
        "no head: constant image",
        "less than half of the mask lies in the head that was found",
    )
    for name in ("hit", "tolerant_hit", "energy", "chance", "tolerant_chance"):
        assert np.isnan(getattr(scores, name)).tolist() == [False, True, True, True, True]
    summary = summarize_saliency(scores, [0, 0, 0, 1, 1], ["glioma", "pituitary"])
    assert list(summary) == ["glioma", "pituitary", "all classes"]
    assert [(row.n, row.left_out) for row in summary.values()] == [(1, 2), (0, 2), (1, 4)]
    assert summary["glioma"].hit == summary["all classes"].hit == 1
    assert np.isnan(summary["pituitary"].hit)


def test_the_mean_over_all_counts_every_image_once() -> None:
    image, mask = slice_of()
    scores = saliency_scores([peak_at(70, 70), peak_at(20, 20), peak_at(20, 20)], [image] * 3, [mask] * 3)
    summary = summarize_saliency(scores, np.array([0, 1, 1]), ["a", "b"])
    assert (summary["a"].hit, summary["b"].hit, summary["all classes"].hit) == (1, 0, pytest.approx(1 / 3))


def test_the_peak_of_a_plateau_is_its_middle() -> None:
    saliency = np.zeros((9, 9))
    saliency[:5, 4:] = 0.7
    assert saliency_peak(saliency) == (2, 6)
    saliency[8, 0] = 0.8
    assert saliency_peak(saliency) == (8, 0)


def test_the_head_has_no_holes_and_no_specks() -> None:
    rows, columns = np.mgrid[:100, :100]
    radius = np.hypot(rows - 50, columns - 50)
    image = np.where(radius < 40, 60.0, 0.0) + np.where((radius > 34) & (radius < 40), 120.0, 0.0)
    expected = radius < 40
    image[radius < 12] = 0  # a ventricle
    image[2:6, 2:6] = 250  # a label in the corner
    assert np.array_equal(head_mask(image), expected)
    assert np.array_equal(head_mask(image - 1000), expected)
    assert np.array_equal(head_mask(image / 255), expected)
    assert not head_mask(np.full((5, 5), 3)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": [np.ones((4, 4))] * 3}, "one of them ends after 2"),
        ({"maps": [], "images": [], "masks": []}, "nothing to score"),
        ({"maps": [np.ones((4, 4)), -np.ones((4, 4))]}, "map 1 has values from -1.0"),
        ({"maps": [np.full((4, 4), np.nan)] * 2}, "map 0 has values from nan"),
        ({"maps": [np.ones((1, 4, 4))] * 2}, r"map of shape \(1, 4, 4\)"),
        ({"images": [np.ones((9, 9))] * 2}, r"number 0 .* image of \(9, 9\)"),
        ({"tolerance": -1}, "tolerance is -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message) -> None:
    image, mask = slice_of()
    arguments = {"maps": [np.eye(4)] * 2, "images": [image] * 2, "masks": [mask] * 2, **change}
    with pytest.raises(ValueError, match=message):
        saliency_scores(**arguments)


@pytest.mark.parametrize("labels", [[0], [0, 2], [0, -1]])
def test_labels_that_do_not_fit_are_refused(labels) -> None:
    image, mask = slice_of()
    scores = saliency_scores([peak_at(70, 70)] * 2, [image] * 2, [mask] * 2)
    with pytest.raises(ValueError, match=r"expected 2 labels in 0\.\.1"):
        summarize_saliency(scores, labels, ["a", "b"])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "all classes"]])
def test_names_that_would_overwrite_one_another_are_refused(names) -> None:
    image, mask = slice_of()
    with pytest.raises(ValueError, match="expected different names"):
        summarize_saliency(saliency_scores([peak_at(70, 70)], [image], [mask]), [0], names)
