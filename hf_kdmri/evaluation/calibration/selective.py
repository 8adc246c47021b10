"""Abstention: how much better a model is on the rows it is sure of, and the threshold below which it should not answer.

Confidence is the highest probability of a row. All of it works over slices and, with `patient_means`, over patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_kdmri.evaluation.calibration.errors import Floats, checked_rows
from hf_kdmri.evaluation.calibration.temperature import FittedOn, Groups, group_ids


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the k most confident of N rows, for k = 1 … N: arrays of (N,).

    Args:
        coverage: k / N.
        risk: share of wrong predictions among those k.
    """

    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """AURC, the mean risk over the N coverages (Geifman et al., ICLR 2019): 0 best."""
        return float(self.risk.mean())

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy among the ⌈coverage · N⌉ most confident rows.

        Args:
            coverage: share of rows that get an answer, above 0, at most 1.

        Raises:
            ValueError: a coverage outside that range.
        """
        _check_share("coverage", coverage)
        return float(1 - self.risk[math.ceil(coverage * len(self.risk) - 1e-9) - 1])  # 0.07 · 100 is above 7


@dataclass(frozen=True)
class AbstentionRule:
    """Answer where the highest probability reaches a threshold, abstain elsewhere.

    Args:
        threshold: 0–1; a row with just this confidence is answered.
        coverage: share of the rows that it was chosen on which are answered.
        accuracy: accuracy among those. Chosen as the best of many thresholds, so expect somewhat less on new patients.
        fitted_on: the rows it was chosen on.
    """

    threshold: float
    coverage: float
    accuracy: float
    fitted_on: FittedOn

    def answers(self, probabilities: ArrayLike, *, groups: Groups | None) -> NDArray[np.bool_]:
        """Tell which rows are answered.

        Args:
            probabilities: (N, C), scaled by the same temperature as those that the threshold was chosen on.
            groups: (N,), patient ids, checked against those chosen on; None where there are none to check.

        Returns:
            (N,), False where the model abstains.

        Raises:
            ValueError: a group was chosen on, or rows that are no probabilities.
        """
        p, _ = checked_rows(probabilities, np.zeros(len(np.asarray(probabilities)), dtype=int))
        self.fitted_on.refuse_overlap(groups, len(p))
        return p.max(axis=1) >= self.threshold


def risk_coverage(probabilities: ArrayLike, labels: ArrayLike) -> RiskCoverage:
    """Rank rows by confidence and follow the error rate as ever less sure rows are answered.

    Rows of equal confidence have no order among themselves. Each counts with the error rate of all of them, which is
    the mean over all their orders, so the curve does not depend on how rows are sorted.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,), integers 0..C-1.

    Returns:
        The curve; its last risk is the plain error rate.

    Example:
        >>> curve = risk_coverage([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], [0, 0, 0, 1])
        >>> curve.risk.round(3).tolist(), round(curve.area, 3), curve.accuracy_at(0.5)
        ([0.0, 0.0, 0.333, 0.5], 0.208, 1.0)
    """
    p, y = checked_rows(probabilities, labels)
    _, tie, size = np.unique(-p.max(axis=1), return_inverse=True, return_counts=True)
    error_rate = np.bincount(tie, weights=p.argmax(axis=1) != y) / size
    answered = np.arange(1, len(y) + 1)
    return RiskCoverage(answered / len(y), np.cumsum(np.repeat(error_rate, size)) / answered)


def abstention_threshold(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    split: str,
    groups: Groups | None,
    coverage: float | None = None,
    accuracy: float | None = None,
) -> AbstentionRule:
    """Choose on validation rows the confidence from which on the model answers; give one of the two aims.

    Rows of equal confidence are answered together or not at all, since no threshold divides them.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,), integers 0..C-1.
        split: name of the split that the rows are from, "validation"; one that names training or test rows is refused.
        groups: (N,), patient ids of the rows, which the rule then refuses to be tested on. None only where none exist.
        coverage: the highest threshold that answers at least this share of the rows.
        accuracy: the lowest threshold at which the answered rows are right at least this often.

    Returns:
        The rule, with the coverage and the accuracy that it reaches on these rows.

    Raises:
        ValueError: both aims or neither, one outside (0, 1], or an accuracy that no threshold reaches.

    Example:
        >>> p, y = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], [0, 0, 0, 1]
        >>> rule = abstention_threshold(p, y, split="validation", groups=list("abcd"), accuracy=0.95)
        >>> rule.threshold, rule.coverage, rule.accuracy
        (0.8, 0.5, 1.0)
        >>> rule.answers([[0.15, 0.85], [0.7, 0.3]], groups=["x", "y"]).tolist()
        [True, False]
    """
    p, y = checked_rows(probabilities, labels)
    source = FittedOn.of(split, groups, len(y))
    # one candidate for each distinct confidence, from the highest down
    negative, tie, size = np.unique(-p.max(axis=1), return_inverse=True, return_counts=True)
    answered = np.cumsum(size)
    right = np.cumsum(np.bincount(tie, weights=p.argmax(axis=1) == y)) / answered
    if coverage is not None and accuracy is None:
        _check_share("coverage", coverage)
        chosen = int(np.argmax(answered >= coverage * len(y) - 1e-9))
    elif accuracy is not None and coverage is None:
        _check_share("accuracy", accuracy)
        reaching = np.flatnonzero(right >= accuracy)
        if not reaching.size:
            best = int(np.argmax(right))
            raise ValueError(
                f"no threshold reaches an accuracy of {accuracy} on these {len(y)} rows; the best is "
                f"{right[best]:.4f}, at a coverage of {answered[best] / len(y):.3f}. Ask for less"
            )
        chosen = int(reaching[-1])
    else:
        raise ValueError(f"coverage is {coverage} and accuracy is {accuracy}; give one of the two")
    return AbstentionRule(float(-negative[chosen]), float(answered[chosen] / len(y)), float(right[chosen]), source)


def patient_means(
    probabilities: ArrayLike, labels: ArrayLike, groups: Groups
) -> tuple[Floats, NDArray[np.int64], NDArray[np.str_]]:
    """Turn slices into patients: the mean probability over a patient's slices, as `patient_metrics` does.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,), integers 0..C-1, the same for all slices of a patient.
        groups: (N,), patient ids.

    Returns:
        Probabilities (P, C), labels (P,) and ids (P,), sorted by id.

    Raises:
        ValueError: a missing id, another number of ids, or a patient with two labels.

    Example:
        >>> p, y, ids = patient_means([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [0, 0, 1], ["a", "a", "b"])
        >>> p.round(2).tolist(), y.tolist(), ids.tolist()
        ([[0.65, 0.35], [0.2, 0.8]], [0, 1], ['a', 'b'])
    """
    p, y = checked_rows(probabilities, labels)
    patients, first, row, size = np.unique(
        group_ids(groups, len(y)), return_index=True, return_inverse=True, return_counts=True
    )
    if (mixed := np.flatnonzero(y != y[first][row])).size:
        raise ValueError(
            f"patient {str(patients[row[mixed[0]]])!r} has two labels, {y[first][row[mixed[0]]]} and {y[mixed[0]]} "
            f"(row {mixed[0]}); expected one per patient. Check that groups and labels come from the same rows"
        )
    sums = np.zeros((len(patients), p.shape[1]))
    np.add.at(sums, row, p)
    return sums / size[:, None], y[first], patients


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; expected a share above 0 and at most 1, such as 0.9")
