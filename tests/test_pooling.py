"""Several folds made one: saliency scores and accuracy under corruption."""

from __future__ import annotations

import numpy as np
import pytest

from hf_kdmri.evaluation.pooling import SCORES, pool_robustness, pool_saliency
from hf_kdmri.evaluation.statistics.predictions import Predictions


def test_saliency_is_averaged_per_class_over_all_folds():
    predictions = Predictions(
        slices=range(6), pids=list("aabbcd"), patient_groups=list("aabbcd"), folds=[0, 0, 0, 0, 1, 1],
        labels=[0, 0, 1, 1, 0, 1], class_names=["x", "y"], probabilities={"student": [[0.5, 0.5]] * 6},
    )  # fmt: skip
    first = {"layer": "blocks.3", "slice": [3, 2, 1, 0], "problems": ["", "", "", "empty mask"]}
    first |= {score: [1.0, 0.0, 1.0, None] for score in SCORES}
    second = {"layer": "blocks.3", "slice": [4, 5], "problems": ["", ""]} | {score: [0.0, 1.0] for score in SCORES}
    told = pool_saliency([{"student": first}, {"student": second}], predictions)["student"]
    assert told["layer"] == "blocks.3" and told["left_out"] == {"empty mask": 1}
    assert {name: (part["n"], part["hit"]["value"]) for name, part in told["classes"].items()} == {
        "x": (2, 0.5), "y": (3, pytest.approx(2 / 3)), "all classes": (5, 0.6),
    }  # fmt: skip
    assert told["classes"]["all classes"]["hit"]["interval"] is None  # four patients are too few
    with pytest.raises(ValueError, match="slice 9 has a saliency map of the student but no prediction"):
        pool_saliency([{"student": {**second, "slice": [4, 9]}}], predictions)


def result(n: int, clean: float, noisy: list[float]) -> dict:
    model = {"clean_accuracy": clean, "accuracy": {"noise": noisy}, "drop": {"noise": clean - float(np.mean(noisy))}}
    return {"n": n, "n_patients": 5, "severities": {"noise": [1, 2]}, "models": {"student": model}, "seconds": 1.0}


def test_corruptions_are_weighted_by_pictures():
    pooled = pool_robustness([result(100, 0.9, [0.8, 0.6]), result(300, 0.7, [0.6, 0.2])])
    student = pooled["models"]["student"]
    assert pooled["n"] == 400 and student["clean_accuracy"] == pytest.approx(0.75)
    assert student["accuracy"]["noise"] == pytest.approx([0.65, 0.3])
    assert student["mean_drop"] == pytest.approx(0.75 - 0.475)
    one = result(100, 0.9, [0.8, 0.6])
    assert pool_robustness([one]) == one
    other = {**one, "severities": {"blur": [1]}}
    with pytest.raises(ValueError, match="other models or corruptions"):
        pool_robustness([one, other])
