from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from hf_kdmri.evaluation.calibration.selective import abstention_threshold, patient_means, risk_coverage
from hf_kdmri.evaluation.metrics import patient_metrics
from tests.test_calibration import calibrated


def rows(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Two-class rows that predict class 0 with these confidences, and labels that make them right or wrong."""
    p = np.array(confidences)
    return np.column_stack([p, 1 - p]), np.where(right, 0, 1)


def choose(probabilities, labels, **aim):
    return abstention_threshold(probabilities, labels, split="validation", groups=None, **aim)


def test_by_hand() -> None:
    scores, labels = rows([0.6, 0.95, 0.7, 0.9, 0.8], [False, True, False, True, True])
    curve = risk_coverage(scores, labels)
    assert curve.coverage == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve.risk == pytest.approx([0, 0, 0, 1 / 4, 2 / 5])
    assert curve.area == pytest.approx((1 / 4 + 2 / 5) / 5)
    assert (curve.accuracy_at(0.8), curve.accuracy_at(1)) == pytest.approx((3 / 4, 3 / 5))
    assert curve.accuracy_at(0.61) == pytest.approx(3 / 4)  # 3.05 rows: the fourth is needed
    assert curve.accuracy_at(0.01) == 1


def test_ties_count_with_the_mean_over_their_orders() -> None:
    scores, labels = rows([0.9, 0.8, 0.8, 0.8, 0.6], [True, False, True, True, False])
    curve = risk_coverage(scores, labels)
    risks = []
    for order in permutations([1, 2, 3]):
        wrong = labels[[0, *order, 4]]
        risks.append(np.cumsum(wrong) / np.arange(1, 6))
    assert curve.risk == pytest.approx(np.mean(risks, axis=0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(1, 4, (25, 3)).astype(float)
    scores /= scores.sum(axis=1, keepdims=True)
    labels = draw.integers(0, 3, 25)
    order = draw.permutation(25)
    curve, again = risk_coverage(scores, labels), risk_coverage(scores[order], labels[order])
    assert again.risk == pytest.approx(curve.risk)
    assert curve.risk[-1] == pytest.approx((scores.argmax(axis=1) != labels).mean())
    assert choose(scores, labels, coverage=0.7) == choose(scores[order], labels[order], coverage=0.7)


@pytest.mark.parametrize("n", [10, 70, 100, 613])
def test_coverages_that_floats_cannot_write_need_no_row_more(n) -> None:
    scores, labels = rows(list(np.linspace(0.6, 0.9, n)), [True] * n)
    for percent in range(1, 101):
        rule = choose(scores, labels, coverage=percent / 100)
        assert round(rule.coverage * n) == -(-percent * n // 100)


def test_errors_among_the_least_sure_give_the_least_area() -> None:
    logits, labels = calibrated(500)
    scores = softmax(logits, axis=1)
    wrong = scores.argmax(axis=1) != labels
    confidence = np.where(wrong, 0.4, 0.6) + 0.1 * np.random.default_rng(0).random(500)
    best = risk_coverage(*rows(list(confidence), list(~wrong)))
    assert best.area < risk_coverage(scores, labels).area < wrong.mean()
    assert best.accuracy_at(1 - wrong.mean()) == 1


def test_a_threshold_for_a_coverage() -> None:
    scores, labels = rows([0.9, 0.8, 0.8, 0.7, 0.6], [True, True, False, True, False])
    rule = choose(scores, labels, coverage=0.4)  # two rows are wanted, ties make it three
    assert (rule.threshold, rule.coverage, rule.accuracy) == pytest.approx((0.8, 0.6, 2 / 3))
    assert rule.answers(scores, groups=None).tolist() == [True, True, True, False, False]
    assert choose(scores, labels, coverage=1).threshold == 0.6


def test_a_threshold_for_an_accuracy_answers_as_many_as_it_can() -> None:
    # accuracy from the surest down: 0, 1/2, 2/3, 3/4, 3/5
    scores, labels = rows([0.9, 0.85, 0.8, 0.7, 0.6], [False, True, True, True, False])
    rule = choose(scores, labels, accuracy=0.7)
    assert (rule.threshold, rule.coverage, rule.accuracy) == pytest.approx((0.7, 0.8, 0.75))
    assert choose(scores, labels, accuracy=0.75).threshold == 0.7
    with pytest.raises(ValueError, match=r"accuracy of 0.99 on these 5 rows; the best is 0.7500, at a coverage of 0.8"):
        choose(scores, labels, accuracy=0.99)


def test_the_chosen_rule_holds_on_other_rows_of_the_same_kind() -> None:
    logits, labels = calibrated(8000)
    scores = softmax(logits, axis=1)
    rule = abstention_threshold(scores[:4000], labels[:4000], split="validation", groups=range(4000), accuracy=0.9)
    answered = rule.answers(scores[4000:], groups=range(4000, 8000))
    assert (scores[4000:].argmax(axis=1) == labels[4000:])[answered].mean() == pytest.approx(0.9, abs=0.02)
    assert answered.mean() == pytest.approx(rule.coverage, abs=0.03)
    with pytest.raises(ValueError, match="1 of the groups to be scored were fitted on"):
        rule.answers(scores[:1], groups=[17])


def test_single_precision_answers_the_row_that_set_the_threshold() -> None:
    logits, labels = calibrated(200)
    scores = softmax(logits, axis=1).astype(np.float32)
    rule = choose(scores, labels, coverage=0.8)
    assert rule.answers(scores, groups=None).sum() == 160


@pytest.mark.parametrize(
    ("aim", "message"),
    [
        ({}, "coverage is None and accuracy is None; give one"),
        ({"coverage": 0.8, "accuracy": 0.9}, "give one of the two"),
        ({"coverage": 0.0}, "coverage is 0.0; expected a share"),
        ({"coverage": 80}, "coverage is 80"),
        ({"accuracy": float("nan")}, "accuracy is nan"),
    ],
)
def test_useless_aims_are_refused(aim, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*rows([0.9, 0.8], [True, False]), **aim)


def test_test_rows_choose_nothing() -> None:
    with pytest.raises(ValueError, match="split is 'test'"):
        abstention_threshold([[0.9, 0.1]], [0], split="test", groups=["a"], coverage=0.8)


def test_a_coverage_out_of_range_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match=r"coverage is 1\.2"):
        risk_coverage([[0.9, 0.1]], [0]).accuracy_at(1.2)


def test_patients_are_those_of_patient_metrics() -> None:
    draw = np.random.default_rng(0)
    patients = draw.integers(0, 40, 300)
    labels = patients % 3
    scores = softmax(draw.normal(size=(300, 3)) + np.eye(3)[labels], axis=1)
    means, truth, ids = patient_means(scores, labels, patients)
    assert len(ids) == 40
    curve = risk_coverage(means, truth)
    expected = patient_metrics(scores, labels, patients, ["a", "b", "c"])["accuracy"]
    assert curve.accuracy_at(1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "a"], "patient 'a' has two labels, 0 and 1"),
        (["a"], "1 groups for 2 rows"),
        (["a", None], "row 1 is missing"),
    ],
)
def test_bad_groups_are_refused_by_name(groups, message) -> None:
    with pytest.raises(ValueError, match=message):
        patient_means([[0.5, 0.5]] * 2, [0, 1], groups)
