from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from hf_kdmri.evaluation.metrics import classification_metrics
from hf_kdmri.evaluation.statistics import bootstrap
from hf_kdmri.evaluation.statistics.bootstrap import (
    MIN_GROUPS,
    confusion_metrics,
    draw_counts,
    draw_metrics,
    estimate,
    group_confusions,
    ranking_metrics,
)

NAMES = ["meningioma", "glioma", "pituitary"]


def simulate(groups: int = 40, seed: int = 0, digits: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (few digits make ties), labels and groups of some 400 slices of patients that differ."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(groups), rng.integers(1, 21, groups))
    labels = (np.arange(groups) % 3)[index]
    logits = 1.5 * np.eye(3)[labels] + rng.normal(size=(groups, 3))[index] + rng.normal(size=(len(index), 3))
    p = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), digits)
    return p / p.sum(axis=1, keepdims=True), labels, index


@pytest.mark.parametrize("digits", [12, 1])
def test_a_draw_equals_the_metrics_of_the_slices_it_repeats(digits) -> None:
    p, labels, index = simulate(digits=digits)
    counts = draw_counts(40, 5, seed=1)
    draws = draw_metrics(p, labels, index, counts)
    for d, weights in enumerate(counts):
        rows = np.repeat(np.arange(len(labels)), weights[index])
        expected = classification_metrics(p[rows], labels[rows], NAMES)
        for name, values in draws.items():
            if name == "mean_patient_accuracy":
                shares = [np.mean(p[index == g].argmax(1) == labels[index == g]) for g in range(40)]
                assert values[d] == pytest.approx(np.average(shares, weights=weights))
            elif values.ndim == 1:
                assert values[d] == pytest.approx(expected[name]), name
            else:
                assert values[d].tolist() == pytest.approx(list(expected[name].values())), name


def test_weighted_numbers_equal_scikit_learn_with_sample_weight() -> None:
    p, labels, index = simulate(digits=2)
    counts = draw_counts(40, 3, seed=2)
    draws, predicted = draw_metrics(p, labels, index, counts), p.argmax(1)
    for d, weights in enumerate(counts):
        w = weights[index]
        assert draws["macro_f1"][d] == pytest.approx(sk.f1_score(labels, predicted, average="macro", sample_weight=w))
        assert draws["mcc"][d] == pytest.approx(sk.matthews_corrcoef(labels, predicted, sample_weight=w))
        for c in range(3):
            auroc = sk.roc_auc_score(labels == c, p[:, c], sample_weight=w)
            assert draws["auroc_per_class"][d, c] == pytest.approx(auroc)
            area = sk.average_precision_score(labels == c, p[:, c], sample_weight=w)
            assert draws["average_precision_per_class"][d, c] == pytest.approx(area)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_areas_equal_scikit_learn_whatever_the_ties_and_weights(rows) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    auroc, area = ranking_metrics(scores.astype(float), positive, np.arange(len(rows)), weights[None, :])
    if not weights[positive].sum() or not weights[~positive].sum():
        assert np.isnan(auroc[0]) and np.isnan(area[0])
        return
    assert auroc[0] == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=weights))
    assert area[0] == pytest.approx(sk.average_precision_score(positive, scores, sample_weight=weights))


def test_blocks_of_draws_change_nothing(monkeypatch) -> None:
    p, labels, index = simulate()
    counts = draw_counts(40, 50, seed=0)
    whole = ranking_metrics(p[:, 0], labels == 0, index, counts)
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 3 * len(labels))
    for one, other in zip(whole, ranking_metrics(p[:, 0], labels == 0, index, counts), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_order_of_rows_and_names_of_groups_do_not_matter(seed) -> None:
    p, labels, index = simulate(groups=12)
    rng = np.random.default_rng(seed)
    rows, renamed, counts = rng.permutation(len(labels)), rng.permutation(12), draw_counts(12, 20, seed=0)
    others = np.empty_like(counts)
    others[:, renamed] = counts  # group g is now called renamed[g]
    one = draw_metrics(p, labels, index, counts)
    other = draw_metrics(p[rows], labels[rows], renamed[index][rows], others)
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], atol=1e-12, err_msg=name)


def test_draws_are_seeded_and_begin_with_the_sample() -> None:
    counts = draw_counts(30, 200, seed=5)
    assert counts.shape == (201, 30)
    assert (counts[0] == 1).all()
    assert (counts.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(counts, draw_counts(30, 200, seed=5))
    assert (counts != draw_counts(30, 200, seed=6)).any()
    for bad in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="expected at least one of each"):
            draw_counts(*bad, seed=0)


def test_absent_classes_and_single_classes_are_nan_without_warnings() -> None:
    labels, index = np.array([0, 0, 1]), np.array([0, 0, 1])
    p = np.eye(3)[[0, 1, 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = draw_metrics(p, labels, index, np.array([[1, 1], [2, 0], [0, 2]]))
    assert np.isnan(draws["recall_per_class"][:, 2]).all()
    assert np.isnan(draws["mcc"]).tolist() == [False, True, True]
    assert np.isnan(draws["macro_auroc"]).tolist() == [False, True, True]
    assert draws["balanced_accuracy"].tolist() == [0.75, 0.5, 1.0]
    assert confusion_metrics(np.array([[[2.0, 0], [2, 0]]]))["mcc"].tolist() == [0]


def test_intervals_that_would_mislead_are_not_given() -> None:
    values = np.array([0.5, *np.linspace(0, 1, 2001)])
    assert estimate(values, MIN_GROUPS) == {"value": 0.5, "interval": pytest.approx([0.025, 0.975])}
    assert estimate(values, MIN_GROUPS - 1)["interval"] is None
    assert estimate(np.ones(2001), 100) == {"value": 1.0, "interval": None}
    some = values.copy()
    some[1:60] = np.nan
    assert estimate(some, 100)["interval"] is not None
    some[1:150] = np.nan
    assert estimate(some, 100)["interval"] is None
    assert estimate(np.full(2001, np.nan), 100) == {"value": None, "interval": None}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % intervals of accuracy, in 500 simulated studies of 200 patients with 1 to 38 slices of unlike difficulty.

    Draws do not depend on the data, so all studies can share them; each study's patients are its own.
    """
    rng, groups, studies = np.random.default_rng(0), 200, 500
    counts = draw_counts(groups, 1000, seed=0)
    skills = rng.beta(2.0, 0.5, size=(studies, groups))  # within a patient, slices are right together
    covered, too_narrow = 0, 0
    for skill in skills:
        index = np.repeat(np.arange(groups), np.minimum(rng.geometric(1 / 14, groups), 38))
        right = (rng.random(len(index)) < skill[index]).astype(np.int64)
        zeros = np.zeros(len(index), np.int64)
        per_group = group_confusions(1 - right, zeros, index, groups, 2)
        drawn = confusion_metrics(np.tensordot(counts.astype(float), per_group, axes=1))["accuracy"]
        low, high = estimate(drawn, groups)["interval"] or (np.nan, np.nan)
        covered += low <= 2.0 / 2.5 <= high
        half = 1.96 * np.sqrt(0.8 * 0.2 / len(index))
        too_narrow += right.mean() - half <= 0.8 <= right.mean() + half
    assert 0.93 <= covered / studies <= 0.97
    assert too_narrow / studies < 0.75  # what intervals over slices would claim
