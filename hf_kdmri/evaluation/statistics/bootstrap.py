"""Confidence intervals by drawing patient groups, never slices, with replacement.

Slices of one person are alike: 3064 slices of 209 people hold the news of some 209 and not of 3064 trials. So a draw
takes G of the G groups with replacement, each with all of its slices, and every metric is computed anew. A draw is a
row of counts (how often each group was taken), which weigh the slices; all draws are computed together, and models
that are given the same counts can be subtracted draw by draw, which gives the interval of a paired difference.

The interval is the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_GROUPS = 20
"""Below so many groups no interval is given: from 10, 77 to 87 % cover the truth (measured: docs/evaluation.md)."""
_MAX_UNDEFINED = 0.05
_ELEMENTS = 2**19  # of a block of draws in the ranking metrics: 2 MB at a time

Draws = dict[str, NDArray[np.float64]]


class Estimate(TypedDict):
    """A metric on the sample itself and its 95 % interval, [lower, upper]; None where there is none."""

    value: float | None
    interval: list[float] | None


def draw_counts(groups: int, draws: int, seed: int) -> NDArray[np.int32]:
    """Draw how often each group is taken.

    Args:
        groups: G, at least 1.
        draws: D, at least 1.
        seed: of the generator; the same seed and sizes give the same draws.

    Returns:
        (1 + D, G). The first row is the sample itself, every group once; each further row sums to G.

    Raises:
        ValueError: No groups or no draws.

    Example:
        >>> draw_counts(groups=3, draws=2, seed=0).sum(axis=1).tolist()
        [3, 3, 3]
    """
    if groups < 1 or draws < 1:
        raise ValueError(f"got {groups} groups and {draws} draws; expected at least one of each")
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return np.concatenate([np.ones((1, groups)), counts]).astype(np.int32)


def draw_metrics(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    group_index: NDArray[np.int64],
    counts: NDArray[np.int32],
) -> Draws:
    """Compute every metric of `classification_metrics` in every draw.

    Args:
        probabilities: (N, C) of one model.
        labels: (N,), 0..C-1.
        group_index: (N,), 0..G-1. For metrics over patients, give one row for each and `arange(G)`.
        counts: (D, G) as `draw_counts` gives them.

    Returns:
        Name to (D,), or to (D, C) where the name ends in `_per_class`; NaN where undefined, as `classification_metrics`
        says. `mean_patient_accuracy` is the mean over groups of the share of a group's slices that are right.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        >>> draws = draw_metrics(p, np.array([0, 1, 1]), np.array([0, 1, 1]), np.array([[1, 1], [2, 0], [0, 2]]))
        >>> draws["accuracy"].round(3).tolist(), draws["mean_patient_accuracy"].tolist()
        ([0.667, 1.0, 0.5], [0.75, 1.0, 0.5])
    """
    groups, classes = counts.shape[1], probabilities.shape[1]
    per_group = group_confusions(probabilities.argmax(axis=1), labels, group_index, groups, classes)
    weights = counts.astype(np.float64)  # products of floats run in BLAS, those of integers do not
    confusions = (weights @ per_group.reshape(groups, -1)).reshape(-1, classes, classes)
    sizes = per_group.sum(axis=(1, 2))
    squared = np.bincount(
        group_index, ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1), minlength=groups
    )  # (G,)
    right = per_group.trace(axis1=1, axis2=2) / sizes
    ranked = [ranking_metrics(probabilities[:, c], labels == c, group_index, counts) for c in range(classes)]
    auroc, average_precision = (np.stack(values, axis=1) for values in zip(*ranked, strict=True))
    return confusion_metrics(confusions) | {
        "macro_auroc": _mean_where_defined(auroc),
        "macro_average_precision": _mean_where_defined(average_precision),
        "brier": weights @ squared / (weights @ sizes),
        "mean_patient_accuracy": weights @ right / weights.sum(axis=1),
        "auroc_per_class": auroc,
        "average_precision_per_class": average_precision,
    }


def group_confusions(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], group_index: NDArray[np.int64], groups: int, classes: int
) -> NDArray[np.float64]:
    """Count a confusion matrix for each group, (G, C, C), rows true, columns predicted."""
    cell = (group_index * classes + labels) * classes + predicted
    return np.bincount(cell, minlength=groups * classes**2).reshape(groups, classes, classes).astype(np.float64)


def confusion_metrics(confusions: NDArray[np.float64]) -> Draws:
    """Compute what follows from confusion matrices, each with at least one slice.

    Args:
        confusions: (D, C, C) of counts or weights, rows true, columns predicted.

    Returns:
        `accuracy`, `macro_f1`, `balanced_accuracy` and `mcc`, (D,); `recall_per_class`, `precision_per_class` and
        `f1_per_class`, (D, C); NaN for 0 / 0.

    Example:
        >>> confusion_metrics(np.array([[[2.0, 0.0], [1.0, 1.0]]]))["recall_per_class"].tolist()
        [[1.0, 0.5]]
    """
    true, predicted = confusions.sum(axis=2), confusions.sum(axis=1)
    hits = confusions.diagonal(axis1=1, axis2=2)
    total, right = true.sum(axis=1), hits.sum(axis=1)
    f1 = _divide(2 * hits, true + predicted)
    recall = _divide(hits, true)
    # Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004
    covariance = right * total - (true * predicted).sum(axis=1)
    spread_true, spread_predicted = (total**2 - (margin**2).sum(axis=1) for margin in (true, predicted))
    mcc = _divide(covariance, np.sqrt(spread_true * spread_predicted))
    return {
        "accuracy": right / total,
        "macro_f1": np.nan_to_num(f1).mean(axis=1),
        "balanced_accuracy": _mean_where_defined(recall),
        "mcc": np.where((spread_predicted == 0) & (spread_true > 0), 0, mcc),
        "recall_per_class": recall,
        "precision_per_class": _divide(hits, predicted),
        "f1_per_class": f1,
    }


def ranking_metrics(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    group_index: NDArray[np.int64],
    counts: NDArray[np.int32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the areas under the ROC and the precision-recall curve in every draw.

    The slices are sorted once. In each draw, running sums of their weights down the ranking tell, at each positive
    slice, how much weight of either kind stands at or above its score; equal scores share one threshold.

    Args:
        scores: (N,).
        positive: (N,).
        group_index: (N,), 0..G-1.
        counts: (D, G).

    Returns:
        AUROC (ties count one half) and average precision (no interpolation, as in scikit-learn), each (D,), NaN where
        a draw holds no positive or no other slice.

    Example:
        >>> scores, positive = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
        >>> auroc, average_precision = ranking_metrics(scores, positive, np.arange(3), np.array([[1, 1, 1], [1, 1, 4]]))
        >>> auroc.round(3).tolist(), average_precision.round(3).tolist()
        ([0.5, 0.2], [0.833, 0.867])
    """
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.flatnonzero(positive[order]), -scores[order]
    # Of each positive: the last rank with its score, and how many ranks stand strictly above; then the same counted
    # among positives alone. Running sums begin with a 0, so "how many" is the place of their weight.
    through, above = (np.searchsorted(ranked, ranked[hits], side) for side in ("right", "left"))
    hits_through, hits_above = (np.searchsorted(hits, places) for places in (through, above))
    auroc, average_precision = np.empty(len(counts)), np.empty(len(counts))
    step = max(1, _ELEMENTS // len(scores))
    for start in range(0, len(counts), step):
        block = slice(start, start + step)
        weights = counts[block].astype(np.int32, copy=False)[:, group_index[order]]
        own = weights[:, hits]
        running, running_hits = _running(weights), _running(own)
        total, total_hits = running[:, -1].astype(np.float64), running_hits[:, -1].astype(np.float64)
        hits_so_far = running_hits[:, hits_through]
        so_far = running[:, through]
        # twice the weight of others that outrank each positive, ties counted once
        outranking = (so_far - hits_so_far) + (running[:, above] - running_hits[:, hits_above])
        auroc[block] = 1 - _divide(
            np.einsum("dn,dn->d", own, outranking, dtype=np.float64), 2 * total_hits * (total - total_hits)
        )
        precision = hits_so_far / np.maximum(so_far, 1)  # where the weight is 0, so is that of this positive
        average_precision[block] = _divide(np.einsum("dn,dn->d", own, precision), total_hits)
        average_precision[block][total == total_hits] = np.nan
    return auroc, average_precision


def estimate(values: NDArray[np.float64], groups: int) -> Estimate:
    """Turn a metric's draws into its value and its percentile interval.

    There is no interval where it would mislead: from fewer than `MIN_GROUPS` groups; where the metric is undefined in
    more than 5 % of the draws; and where all draws agree (everything right), which shows that the sample holds no
    errors and not that there are none. For the last case, the rule of three: with G groups and no error in any, up to
    about 3 / G of all patients may have one.

    Args:
        values: (1 + D,), the sample's value first.
        groups: number of groups that the metric rests on: for a class's, the groups of that class.

    Example:
        >>> told = estimate(np.array([500, *range(1001)]), groups=100)
        >>> told["value"], [round(bound) for bound in told["interval"]]
        (500.0, [25, 975])
        >>> estimate(np.ones(1001), groups=100)
        {'value': 1.0, 'interval': None}
    """
    value, drawn = float(values[0]), values[1:]
    defined = drawn[~np.isnan(drawn)]
    interval = None
    if not np.isnan(value) and groups >= MIN_GROUPS and len(defined) >= (1 - _MAX_UNDEFINED) * len(drawn):
        low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        if high - low > 1e-12:  # sums in another order may differ in the last digit
            interval = [float(low), float(high)]
    return {"value": None if np.isnan(value) else value, "interval": interval}


def _running(weights: NDArray[np.int32]) -> NDArray[np.int32]:
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, with NaN wherever the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def _mean_where_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (D, C) over the classes that are not NaN; NaN where none is."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
