"""Is one model better than another on the same patients? A permutation test, and McNemar's test over patients.

Both ask whether two models that were trained once differ on these patients. Neither knows how much a model would change
with another seed or other training patients; folds and seeds tell that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from hf_kdmri.evaluation.statistics.bootstrap import confusion_metrics, group_confusions

TESTED = ("accuracy", "macro_f1", "balanced_accuracy", "mcc")
_ELEMENTS = 2**21  # of a block of permutations: 16 MB at a time


class McNemar(TypedDict):
    """Patients by who is right, and the exact two-sided p-value."""

    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    p: float


def permutation_test(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    labels: NDArray[np.int64],
    group_index: NDArray[np.int64],
    *,
    classes: int,
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Test the difference of two models by swapping their predictions, patient group by patient group.

    If it makes no difference which model a patient gets, the two models' predictions for all slices of a group can be
    swapped at will. p is the share of random swaps (each group with probability one half) whose difference is at least
    as large as the one observed, in either direction, with the observed one counted among them: (k + 1) / (n + 1), so
    that p is never 0 and the test keeps its level (Phipson and Smyth, "Permutation p-values should never be zero",
    2010). Slices are never swapped singly: those of one person are alike, and p would be far too small.

    Args:
        first: (N,) predicted classes of one model.
        second: (N,) predicted classes of the other.
        labels: (N,), 0..C-1.
        group_index: (N,), 0..G-1. For a test over patients, give one row for each and `arange(G)`.
        classes: C.
        permutations: n.
        seed: of the generator.

    Returns:
        Each of accuracy, macro_f1, balanced_accuracy and mcc to its two-sided p; None for an MCC that does not exist
        because all labels are of one class.

    Raises:
        ValueError: No permutations, or arrays of different shapes.

    Example:
        >>> labels, wrong = np.zeros(8, int), np.ones(8, int)
        >>> p = permutation_test(labels, wrong, labels, np.arange(8), classes=2, permutations=9999)
        >>> round(p["accuracy"], 2)  # 2 of the 256 ways to swap
        0.01
    """
    shapes = {np.shape(array) for array in (first, second, labels, group_index)}
    if permutations < 1 or len(shapes) != 1:
        raise ValueError(
            f"got {permutations} permutations of arrays of {shapes}; expected 1 or more, and one shape (N,)"
        )
    groups = int(group_index.max()) + 1
    one, other = (group_confusions(model, labels, group_index, groups, classes) for model in (first, second))
    gain = other - one  # (G, C, C), what swapping a group adds to the first model and takes from the second
    gain = gain[gain.any(axis=(1, 2))]  # a group on which the models agree changes nothing
    pair = (one.sum(axis=0, keepdims=True), other.sum(axis=0, keepdims=True))
    observed = _differences(*pair)
    extreme = dict.fromkeys(TESTED, 0)
    for swapped in _swaps(permutations, len(gain), seed):
        moved = (swapped @ gain.reshape(len(gain), classes**2)).reshape(-1, classes, classes)
        for name, differences in _differences(pair[0] + moved, pair[1] - moved).items():
            # sums in another order may differ in the last digit, which must not decide a tie
            extreme[name] += int((np.abs(differences) >= np.abs(observed[name]) - 1e-12).sum())
    return {name: None if np.isnan(observed[name][0]) else (extreme[name] + 1) / (permutations + 1) for name in TESTED}


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemar:
    """Compare two models on independent patients by those that only one of them gets right.

    Under the null hypothesis a patient on whom they disagree falls to either with probability one half, which the exact
    binomial test checks (McNemar, Psychometrika, 1947); without such a patient p is 1.

    Args:
        first_right: (G,), for each patient, whether one model is right: its class of highest mean probability.
        second_right: (G,), the same of the other model.

    Returns:
        The four counts and the two-sided p.

    Raises:
        ValueError: The shapes differ, or there are no patients.

    Example:
        >>> table = mcnemar(np.array([1, 1, 1, 1, 0], bool), np.array([1, 0, 0, 0, 0], bool))
        >>> table["only_first_right"], table["only_second_right"], table["p"]
        (3, 0, 0.25)
    """
    if first_right.shape != second_right.shape or not first_right.size:
        raise ValueError(
            f"got shapes {first_right.shape} and {second_right.shape}; expected one value for each patient in both"
        )
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    return {
        "both_right": int((first_right & second_right).sum()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "both_wrong": int((~first_right & ~second_right).sum()),
        "p": float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    }


def _differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    metrics, others = confusion_metrics(first), confusion_metrics(second)
    return {name: metrics[name] - others[name] for name in TESTED}


def _swaps(permutations: int, groups: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Give blocks of rows of zeros and ones, `permutations` rows in all, (…, groups)."""
    generator, step = np.random.default_rng(seed), max(1, _ELEMENTS // max(1, groups))
    for start in range(0, permutations, step):
        rows = min(step, permutations - start)
        yield generator.integers(0, 2, (rows, groups), dtype=np.int8).astype(np.float64)
