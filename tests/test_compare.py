"""Runs side by side: paired, aligned by slice, refused where they cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from hf_kdmri.evaluation.statistics.compare import compare_runs, compare_table
from hf_kdmri.evaluation.statistics.predictions import Predictions


def predictions(right: np.ndarray, *, slices: np.ndarray | None = None, **changes) -> Predictions:
    """A student that is right where told; groups of five slices, two classes."""
    n = len(right)
    groups = np.arange(n) // 5
    labels = groups % 2
    p = np.where((labels == 1) == right, 0.8, 0.2)
    fields = dict(
        slices=np.arange(n) if slices is None else slices,
        pids=groups.astype(str),
        patient_groups=groups.astype(str),
        folds=np.zeros(n, int),
        labels=labels,
        class_names=["meningioma", "glioma"],
        probabilities={"student": np.column_stack([1 - p, p])},
    )
    return Predictions(**{**fields, **changes})


def draw(seed: int, rate: float, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


def test_a_run_against_itself_shows_no_difference():
    run = predictions(draw(0, 0.8))
    told = compare_runs({"a": run, "b": run}, draws=200, permutations=200)
    assert told["against"]["b"]["differences"]["accuracy"]["value"] == 0
    assert told["against"]["b"]["permutation_p"]["accuracy"] == 1
    assert told["against"]["b"]["mcnemar"]["p"] == 1


def test_a_better_run_is_found_whatever_the_order_of_rows():
    worse, better = predictions(draw(0, 0.6)), predictions(draw(1, 0.9))
    told = compare_runs({"worse": worse, "better": better}, draws=500, permutations=500)
    shuffled = better.select(np.random.default_rng(2).permutation(len(better)))
    assert compare_runs({"worse": worse, "better": shuffled}, draws=500, permutations=500) == told
    difference = told["against"]["better"]["differences"]["accuracy"]
    expected = draw(1, 0.9).mean() - draw(0, 0.6).mean()
    assert difference["value"] == pytest.approx(expected)
    assert difference["interval"][0] > 0.2 and told["against"]["better"]["permutation_p"]["accuracy"] < 0.01
    table = compare_table(told)
    assert "| better |" in table and ("< 0.001" in table or "0.002" in table)
    assert "300 test images of 60 patient groups" in table


def test_what_cannot_be_compared_is_refused():
    run, longer = predictions(draw(0, 0.8)), predictions(draw(0, 0.8, 320))
    with pytest.raises(ValueError, match="give two or more"):
        compare_runs({"a": run})
    with pytest.raises(ValueError, match=r"b was tested on 320 images, 20 of which .* --common"):
        compare_runs({"a": run, "b": longer})
    assert compare_runs({"a": run, "b": longer}, common=True, draws=50, permutations=50)["slices"] == 300
    with pytest.raises(ValueError, match="no predictions of the teacher; it has student"):
        compare_runs({"a": run, "b": run}, model="teacher")
    with pytest.raises(ValueError, match="shares no test image"):
        compare_runs({"a": run, "b": predictions(draw(0, 0.8), slices=np.arange(300) + 1000)})
    with pytest.raises(ValueError, match="one data set"):
        compare_runs({"a": run, "b": predictions(draw(0, 0.8), class_names=["x", "y"])})
    with pytest.raises(ValueError, match="has one label in b and another one in a"):
        compare_runs({"a": run, "b": predictions(draw(0, 0.8), labels=1 - run.labels)})
