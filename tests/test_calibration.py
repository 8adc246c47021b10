from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from hf_kdmri.evaluation.calibration.errors import (
    brier_score,
    calibration_error_floor,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)


def calibrated(n: int, seed: int = 0, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three classes, and labels drawn from softmax(logits / temperature), so the truth is known."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.normal(size=(n, 3))
    truth = softmax(logits / temperature, axis=1)
    return logits, (draw.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(max=2)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_error_of_calibrated_scores_vanishes_with_n(adaptive) -> None:
    errors = []
    for n in (300, 3_000, 30_000):
        logits, labels = calibrated(n)
        errors.append(expected_calibration_error(softmax(logits, axis=1), labels, adaptive=adaptive))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_the_floor_is_the_error_of_calibrated_scores_and_the_stated_formula() -> None:
    """The estimator is biased upwards; the docstring says by how much."""
    n = 600
    logits = [calibrated(n, seed) for seed in range(60)]
    seen = np.mean([expected_calibration_error(softmax(z, axis=1), y) for z, y in logits])
    scores = softmax(logits[0][0], axis=1)
    confidence = scores.max(axis=1)
    formula = np.sqrt(2 * 15 * (confidence * (1 - confidence)).mean() / (np.pi * n))
    assert calibration_error_floor(scores) == pytest.approx(seen, rel=0.06)
    assert formula == pytest.approx(seen, rel=0.1)


def test_over_confident_scores_have_an_error_well_above_the_floor() -> None:
    logits, labels = calibrated(2000, temperature=2.5)
    scores = softmax(logits, axis=1)
    assert expected_calibration_error(scores, labels) > 5 * calibration_error_floor(scores, draws=50)


def test_by_hand() -> None:
    scores = [[0.95, 0.05], [0.85, 0.15], [0.35, 0.65], [0.55, 0.45]]
    labels = [0, 0, 0, 1]
    # Equal mass, two bins: {0.55, 0.65} both wrong, {0.85, 0.95} both right.
    assert expected_calibration_error(scores, labels, bins=2) == pytest.approx((0.6 + 0.1) / 2)
    # Equal width, two bins: all in (0.5, 1], mean confidence 0.75, half right.
    assert expected_calibration_error(scores, labels, bins=2, adaptive=False) == pytest.approx(0.25)
    # Class 1, equal mass: probabilities {0.05, 0.15} never true, {0.45, 0.65} true once.
    assert classwise_calibration_error(scores, labels, bins=2) == pytest.approx([(0.1 + 0.05) / 2] * 2)
    assert brier_score(scores, labels) == pytest.approx(2 * (0.05**2 + 0.15**2 + 0.65**2 + 0.55**2) / 4)
    assert negative_log_likelihood(scores, labels) == pytest.approx(-np.log([0.95, 0.85, 0.35, 0.45]).mean())


def test_bins_of_equal_width_are_closed_above() -> None:
    curve = reliability_curve([[0.7, 0.3], [0.71, 0.29], [0.6, 0.4]], [0, 0, 0], bins=10, adaptive=False)
    assert curve.count.tolist() == [1, 1, 1]
    assert curve.score == pytest.approx([0.6, 0.7, 0.71])


def test_equal_mass_means_equal_mass() -> None:
    logits, labels = calibrated(613)
    curve = reliability_curve(softmax(logits, axis=1), labels)
    assert len(curve.count) == 15
    assert set(curve.count) == {40, 41}
    assert curve.count.sum() == 613


def test_a_two_class_curve_equals_scikit_learn() -> None:
    logits, labels = calibrated(500)
    positive = softmax(logits[:, :2], axis=1)[:, 1]
    hit = (labels == 1).astype(int)
    frequency, score = calibration_curve(hit, positive, n_bins=10)
    errors = classwise_calibration_error(np.column_stack([1 - positive, positive]), hit, bins=10, adaptive=False)
    count = np.histogram(positive, np.linspace(0, 1, 11))[0]
    assert errors[1] == pytest.approx(np.average(np.abs(frequency - score), weights=count[count > 0]))


def test_intervals_are_wilsons_and_hold_the_frequency() -> None:
    logits, labels = calibrated(200)
    curve = reliability_curve(softmax(logits, axis=1), labels, bins=5)
    interval = binomtest(round(curve.frequency[2] * 40), 40).proportion_ci(method="wilson")
    assert (curve.low[2], curve.high[2]) == pytest.approx((interval.low, interval.high))
    assert ((curve.low <= curve.frequency) & (curve.frequency <= curve.high)).all()


@pytest.mark.parametrize("scores", [np.eye(3)[[0, 1, 2, 0]], np.full((4, 3), 1 / 3)])
def test_certain_and_undecided_scores_make_one_bin(scores) -> None:
    labels = scores.argmax(axis=1)
    curve = reliability_curve(scores, labels)
    assert (len(curve.count), curve.count.sum(), curve.frequency.item()) == (1, 4, 1.0)
    assert curve.error == pytest.approx(1 - scores.max(axis=1)[0])


def test_a_single_row_and_a_single_class_are_scored() -> None:
    assert expected_calibration_error([[0.7, 0.3]], [0]) == pytest.approx(0.3)
    assert negative_log_likelihood([[0.7, 0.3], [0.6, 0.4]], [0, 0]) == pytest.approx(-np.log([0.7, 0.6]).mean())
    assert classwise_calibration_error([[1.0, 0.0, 0.0]], [0]) == pytest.approx([0, 0, 0])


def test_a_certain_wrong_row_keeps_the_likelihood_finite() -> None:
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-np.log(np.finfo(np.float64).eps), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.booleans())
def test_the_order_of_rows_and_classes_does_not_matter(seed, bins, adaptive) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(1, 5, (30, 3)).astype(float)  # many ties in confidence
    scores /= scores.sum(axis=1, keepdims=True)
    labels = draw.integers(0, 3, 30)
    rows = draw.permutation(30)
    error = expected_calibration_error(scores, labels, bins=bins, adaptive=adaptive)
    again = expected_calibration_error(scores[rows], labels[rows], bins=bins, adaptive=adaptive)
    assert again == pytest.approx(error, abs=1e-12)
    assert 0 <= error <= 1
    classes = draw.permutation(3)
    by_class = classwise_calibration_error(scores, labels, bins=bins, adaptive=adaptive)
    renamed = classwise_calibration_error(scores[:, classes], np.argsort(classes)[labels], bins=bins, adaptive=adaptive)
    assert renamed == pytest.approx(by_class[classes], abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.5, 0.5], [0], {}, r"shape \(2,\); expected \(N, C\)"),
        ([[1.0]], [0], {}, "C >= 2 classes"),
        ([[2.0, 1.0]], [0], {}, "softmax"),
        ([[0.5, 0.5]], [2], {}, "label 2 in row 0 is out of range"),
        ([[0.5, 0.5]], [0], {"bins": 0}, "bins is 0; expected at least 1"),
        (np.zeros((0, 3)), np.zeros(0, int), {}, "nothing to score"),
    ],
)
def test_bad_input_is_refused_by_name(scores, labels, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(scores, labels, **options)
