"""Do probabilities mean what they say? Calibration errors, reliability curves and proper scores, over plain arrays.

What to do about it is in `temperature.py` beside this file. scikit-learn and SciPy compute the scores and intervals;
scikit-learn has no calibration error, and its `calibration_curve` has two classes and gives no counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from hf_kdmri.evaluation.metrics import check_probabilities

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins of rows by their score, lowest first, empty bins left out: arrays of (B,).

    Args:
        score: mean score in the bin, 0–1.
        frequency: how often the event came true in it, 0–1.
        low: lower end of Wilson's interval of the frequency.
        high: upper end.
        count: rows.
    """

    score: Floats
    frequency: Floats
    low: Floats
    high: Floats
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean of |frequency − score| over rows: the expected calibration error of these bins."""
        return float(np.average(np.abs(self.frequency - self.score), weights=self.count))


def checked_rows(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Return probabilities (N, C) in double precision and labels (N,), or refuse them by name.

    Raises:
        ValueError: as `classification_metrics`, or fewer than two classes.
    """
    shape = np.shape(probabilities)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"probabilities have shape {shape}; expected (N, C) with a column for each of C >= 2 classes")
    return check_probabilities(probabilities, labels, [f"class {index}" for index in range(shape[1])])


def _bins(scores: Floats, bins: int, adaptive: bool) -> NDArray[np.int64]:
    """Number the bin of each score; equal scores share one, so that the order of rows does not matter."""
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    if adaptive:  # whole numbers, since a quantile's rounding would move a row across a bin's end
        ends = np.sort(scores)[-(-np.arange(1, bins) * len(scores) // bins) - 1]
    else:
        ends = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(ends, scores, side="left")


def reliability_curve(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, adaptive: bool = True, level: float = 0.95
) -> ReliabilityCurve:
    """Compare the confidence of predictions (their highest probability) with how often they are right.

    Wilson's interval takes rows as independent. Slices of one patient are not, so it is too narrow for slices.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,), integers 0..C-1.
        bins: at most so many; rows of equal confidence are never divided.
        adaptive: bins of equally many rows; False for bins of equal width, (0, 1/bins], (1/bins, 2/bins], …
        level: of Wilson's interval.

    Returns:
        Mean confidence, accuracy, its interval and count of each bin.

    Example:
        >>> curve = reliability_curve([[0.9, 0.1], [0.7, 0.3], [0.7, 0.3]], [0, 0, 1], bins=2)
        >>> curve.score.round(2).tolist(), curve.frequency.tolist(), curve.count.tolist()
        ([0.7, 0.9], [0.5, 1.0], [2, 1])
    """
    p, y = checked_rows(probabilities, labels)
    return _curve(p.max(axis=1), p.argmax(axis=1) == y, bins, adaptive, level)


def _curve(scores: Floats, events: NDArray[np.bool_], bins: int, adaptive: bool, level: float) -> ReliabilityCurve:
    _, index, count = np.unique(_bins(scores, bins, adaptive), return_inverse=True, return_counts=True)
    hits = np.bincount(index, weights=events).astype(int)
    intervals = [binomtest(k, n).proportion_ci(level, method="wilson") for k, n in zip(hits, count, strict=True)]
    low, high = np.array(intervals).T
    return ReliabilityCurve(np.bincount(index, weights=scores) / count, hits / count, low, high, count)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, adaptive: bool = True
) -> float:
    """Compute the top-label expected calibration error: mean over rows of |accuracy − mean confidence| of their bin.

    ECE = Σ_b n_b/N · |acc_b − conf_b| (Guo et al., ICML 2017; equal-mass bins: Nguyen and O'Connor, EMNLP 2015).
    A mean of absolute values is above 0 by chance alone: perfectly calibrated scores get about √(2·bins·v/(π·N)), v
    the mean of confidence · (1 − confidence). `calibration_error_floor` gives that for the scores at hand.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,), integers 0..C-1.
        bins: as for `reliability_curve`.
        adaptive: likewise.

    Returns:
        The error, 0–1.

    Example:
        >>> round(expected_calibration_error([[0.8, 0.2], [0.4, 0.6]], [0, 1], bins=1), 6)  # |1 − (0.8 + 0.6)/2|
        0.3
    """
    return reliability_curve(probabilities, labels, bins=bins, adaptive=adaptive).error


def calibration_error_floor(
    probabilities: ArrayLike, *, bins: int = 15, adaptive: bool = True, draws: int = 1000, seed: int = 0
) -> float:
    """Compute the mean ECE of these confidences if they were perfectly calibrated and rows independent.

    Whether a prediction is right is drawn with its own confidence as probability (Bröcker and Smith, 2007). An ECE
    near this says nothing against the model; slices of one patient are not independent, so the true floor is higher.

    Args:
        probabilities: (N, C), each row sums to 1.
        bins: as for `reliability_curve`.
        adaptive: likewise.
        draws: of all rows.
        seed: of the draws.
    """
    p, _ = checked_rows(probabilities, np.zeros(len(np.asarray(probabilities)), dtype=int))
    confidence = p.max(axis=1)
    index = np.unique(_bins(confidence, bins, adaptive), return_inverse=True)[1]
    member = np.eye(index.max() + 1)[index]
    random = np.random.default_rng(seed)
    errors = [np.abs(((random.random(len(p)) < confidence) - confidence) @ member).sum() / len(p) for _ in range(draws)]
    return float(np.mean(errors))


def classwise_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, adaptive: bool = True
) -> Floats:
    """Compute the calibration error of each class's own probability (Kull et al., NeurIPS 2019).

    Rows are binned by the probability of class c and its mean is compared with how often c was true. Arguments as for
    `expected_calibration_error`.

    Returns:
        (C,), each 0–1; their mean is the class-wise ECE.
    """
    p, y = checked_rows(probabilities, labels)
    return np.array([_curve(p[:, c], y == c, bins, adaptive, 0.95).error for c in range(p.shape[1])])


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute Brier's score in its original form, the mean over rows of Σ_c (p_c − [label = c])²: 0 best, 2 worst.

    For two classes this is twice the one-column form. Arguments as for `expected_calibration_error`.

    Example:
        >>> round(brier_score([[0.8, 0.2], [0.6, 0.4]], [0, 1]), 6)  # (0.08 + 0.72) / 2
        0.4
    """
    p, y = checked_rows(probabilities, labels)
    return float(brier_score_loss(y, _sum_to_one(p), labels=np.arange(p.shape[1]), scale_by_half=False))


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of −log p[label], in nats; a probability of 0 counts as 2.2e-16, so that the mean is finite.

    Arguments as for `expected_calibration_error`.
    """
    p, y = checked_rows(probabilities, labels)
    return float(log_loss(y, _sum_to_one(p), labels=np.arange(p.shape[1])))


def _sum_to_one(p: Floats) -> Floats:
    """Repair rows that a model gave in half or single precision, of which scikit-learn would warn."""
    return p / p.sum(axis=1, keepdims=True)
