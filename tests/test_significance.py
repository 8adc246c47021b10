from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import f1_score

from hf_kdmri.evaluation.statistics import significance
from hf_kdmri.evaluation.statistics.significance import mcnemar, permutation_test


def study(seed: int, groups: int = 30, better: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two models' predictions, labels and groups; within a patient, slices are right together."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(groups), rng.integers(1, 21, groups))
    labels = (np.arange(groups) % 3)[index]
    models = []
    for gain in (better, 0.0):
        skill = np.clip(rng.beta(2, 1, groups) + gain, 0, 1)[index]
        models.append(np.where(rng.random(len(index)) < skill, labels, (labels + 1) % 3))
    return models[0], models[1], labels, index


def test_every_swap_counted_by_hand() -> None:
    """Three groups, 2 ** 3 swaps: the share of the extreme ones is known, and so is p in the limit."""
    first, second, labels, index = study(1, groups=3)
    values = []
    for swap in np.ndindex(2, 2, 2):
        swapped = np.array(swap, bool)[index]
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        values.append([f1_score(labels, m, average="macro", labels=[0, 1, 2], zero_division=0) for m in (one, other)])
    differences = np.abs([one - other for one, other in values])
    share = np.mean(differences >= differences[0] - 1e-12)
    p = permutation_test(first, second, labels, index, classes=3, permutations=20_000)["macro_f1"]
    assert p == pytest.approx(share, abs=0.015)


def test_equal_models_give_one_and_better_ones_a_small_p() -> None:
    first, second, labels, index = study(0, better=0.5)
    same = permutation_test(first, first, labels, index, classes=3, permutations=99)
    assert same == dict.fromkeys(same, 1.0)
    better = permutation_test(first, second, labels, index, classes=3, permutations=999)
    # (0 + 1) / (999 + 1) is the smallest that there is
    assert all(p is not None and 0.001 <= p <= 0.005 for p in better.values())


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_order_of_rows_order_of_models_and_seed_matter_little(seed) -> None:
    first, second, labels, index = study(2)
    rows = np.random.default_rng(seed).permutation(len(labels))
    p = permutation_test(first, second, labels, index, classes=3, permutations=999)
    assert p == permutation_test(first[rows], second[rows], labels[rows], index[rows], classes=3, permutations=999)
    assert p == permutation_test(second, first, labels, index, classes=3, permutations=999)
    other = permutation_test(first, second, labels, index, classes=3, permutations=999, seed=seed)
    for name in p:
        assert p[name] == pytest.approx(other[name], abs=0.1)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(30)))
def test_names_of_groups_matter_as_little_as_the_seed(names) -> None:
    first, second, labels, index = study(2)
    p = permutation_test(first, second, labels, index, classes=3, permutations=999)
    other = permutation_test(first, second, labels, np.array(names)[index], classes=3, permutations=999)
    assert p["accuracy"] == pytest.approx(other["accuracy"], abs=0.1)


def test_blocks_of_swaps_change_little(monkeypatch) -> None:
    first, second, labels, index = study(3)
    p = permutation_test(first, second, labels, index, classes=3, permutations=500)
    monkeypatch.setattr(significance, "_ELEMENTS", 30 * 7)
    assert p == pytest.approx(permutation_test(first, second, labels, index, classes=3, permutations=500), abs=0.1)


def test_models_that_do_not_differ_are_found_different_in_five_of_a_hundred_studies() -> None:
    studies = 600
    p = [permutation_test(*study(100 + s), classes=3, permutations=199) for s in range(studies)]
    low, high = binom.interval(0.99, studies, 0.05)
    for name in ("accuracy", "macro_f1"):
        found = [value <= 0.05 for one in p if (value := one[name]) is not None]
        assert len(found) == studies and low <= sum(found) <= high, name


def test_bad_input_is_refused() -> None:
    first, second, labels, index = study(0)
    with pytest.raises(ValueError, match="got 0 permutations"):
        permutation_test(first, second, labels, index, classes=3, permutations=0)
    with pytest.raises(ValueError, match="one shape"):
        permutation_test(first[:5], second, labels, index, classes=3)
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        mcnemar(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="expected one value for each patient"):
        mcnemar(np.ones(0, bool), np.ones(0, bool))


def test_mcc_of_one_class_has_no_p() -> None:
    p = permutation_test(np.array([0, 1]), np.array([0, 0]), np.array([0, 0]), np.array([0, 1]), classes=2)
    assert p["mcc"] is None
    assert p["accuracy"] == 1.0


def test_mcnemar_by_hand() -> None:
    first = np.array([1] * 9 + [0] + [1] * 20 + [0] * 3, bool)
    second = np.array([0] * 9 + [1] + [1] * 20 + [0] * 3, bool)
    table = mcnemar(first, second)
    counts = [table[key] for key in ("both_right", "only_first_right", "only_second_right", "both_wrong")]
    assert counts == [20, 9, 1, 3]
    assert table["p"] == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(second, first)["p"] == table["p"]
    assert mcnemar(first, first)["p"] == 1.0
