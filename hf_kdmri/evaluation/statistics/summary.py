"""Everything that is said of pooled test predictions, as one dict, ready for JSON. `summary_tables` shows it.

Every field is explained in docs/evaluation.md; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdmri.evaluation.metrics import classification_metrics, patient_metrics
from hf_kdmri.evaluation.statistics.bootstrap import (
    CONFIDENCE,
    Draws,
    draw_counts,
    draw_metrics,
    estimate,
    group_confusions,
)
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.significance import mcnemar, permutation_test
from hf_kdmri.evaluation.statistics.subsets import subset_results

FORMAT_VERSION = 1
PAIRS = (("student", "baseline"), ("student", "teacher"))


def summarize(
    predictions: Predictions, *, draws: int = 2000, permutations: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Score all models over slices and over patients, compare them, and score them on the subsets.

    Folds are pooled: one number over all test slices, each predicted by the model that did not see its patient. All
    models get the same bootstrap draws, so that their differences have paired intervals.

    Args:
        predictions: of the test slices of one or more folds.
        draws: patient groups are drawn with replacement this often.
        permutations: of the tests of the student against the others.
        seed: of draws and permutations; the same seed gives the same summary.

    Returns:
        Plain Python, ready for JSON, without NaN; the fields are those of docs/evaluation.md.

    Raises:
        ValueError: `draws` or `permutations` is below 1.

    Example:
        >>> predictions = Predictions(
        ...     slices=range(4), pids=list("aabc"), patient_groups=list("aabc"), folds=[0] * 4, labels=[0, 0, 1, 1],
        ...     class_names=["meningioma", "glioma"],
        ...     probabilities={"student": [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]]},
        ... )
        >>> summary = summarize(predictions, draws=100, permutations=100)
        >>> summary["over_slices"]["models"]["student"]["accuracy"]  # no interval from three patients
        {'value': 0.75, 'interval': None}
    """
    groups, index = predictions.group_index()
    patients, patient_labels = predictions.patients()
    shared: dict[str, Any] = {
        "counts": draw_counts(len(groups), draws, seed),
        "permutations": permutations,
        "seed": seed,
    }
    over_slices = _scores(predictions, predictions.probabilities, predictions.labels, index, **shared)
    over_patients = _scores(predictions, patients, patient_labels, np.arange(len(groups)), **shared)
    for first, second in _pairs(predictions):
        right = [patients[model].argmax(axis=1) == patient_labels for model in (first, second)]
        over_patients["comparisons"][f"{first}_minus_{second}"]["mcnemar"] = mcnemar(*right)
    folds = {str(fold): _fold(predictions.select(predictions.folds == fold)) for fold in np.unique(predictions.folds)}
    per_class = np.bincount(patient_labels, minlength=len(predictions.class_names)).tolist()
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(predictions.class_names),
        "slices": len(predictions),
        "pids": len(np.unique(predictions.pids)),
        "patient_groups": len(groups),
        "patient_groups_per_class": dict(zip(predictions.class_names, per_class, strict=True)),
        "disjoint_groups": predictions.disjoint_groups,
        "confidence": CONFIDENCE,
        "draws": draws,
        "permutations": permutations,
        "seed": seed,
        "over_slices": over_slices,
        "over_patients": over_patients,
        "folds": folds,
        "spread_over_folds": {model: _spread(folds, model) for model in predictions.models},
        "subsets": subset_results(predictions, draws=draws, seed=seed),
    }


def _scores(
    predictions: Predictions,
    probabilities: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    group_index: NDArray[np.int64],
    *,
    counts: NDArray[np.int32],
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Score and compare all models on rows that are slices or patients; `counts` are the draws of patient groups."""
    names, groups = predictions.class_names, counts.shape[1]
    group_labels = np.zeros(groups, np.int64)
    group_labels[group_index] = labels  # a group has one class
    per_class = np.bincount(group_labels, minlength=len(names))
    drawn = {model: draw_metrics(p, labels, group_index, counts) for model, p in probabilities.items()}
    predicted = {model: p.argmax(axis=1) for model, p in probabilities.items()}
    models, comparisons = {}, {}
    for model in probabilities:
        confusions = group_confusions(predicted[model], labels, group_index, groups, len(names))
        models[model] = {
            **_estimates(drawn[model], names, per_class),
            "confusion_matrix": confusions.sum(axis=0).astype(int).tolist(),
        }
    for first, second in _pairs(predictions):
        differences = {metric: drawn[first][metric] - drawn[second][metric] for metric in drawn[first]}
        comparisons[f"{first}_minus_{second}"] = {
            "differences": _estimates(differences, names, per_class),
            "permutation_p": permutation_test(
                predicted[first],
                predicted[second],
                labels,
                group_index,
                classes=len(names),
                permutations=permutations,
                seed=seed,
            ),
        }
    return {"n": len(labels), "models": models, "comparisons": comparisons}


def _pairs(predictions: Predictions) -> list[tuple[str, str]]:
    return [(first, second) for first, second in PAIRS if {first, second} <= set(predictions.models)]


def _estimates(drawn: Draws, class_names: Sequence[str], groups_per_class: NDArray[np.int64]) -> dict[str, Any]:
    """Name each metric's estimate, or for a metric per class, each class's."""
    total = int(groups_per_class.sum())
    return {
        metric: estimate(values, total)
        if values.ndim == 1
        else {name: estimate(values[:, c], int(groups_per_class[c])) for c, name in enumerate(class_names)}
        for metric, values in drawn.items()
    }


def _fold(part: Predictions) -> dict[str, Any]:
    groups, _ = part.group_index()
    models = {}
    for model, p in part.probabilities.items():
        over_slices = classification_metrics(p, part.labels, part.class_names)
        over_patients = patient_metrics(p, part.labels, part.patient_groups, part.class_names)
        models[model] = {
            "accuracy": over_slices["accuracy"],
            "macro_f1": over_slices["macro_f1"],
            "patient_accuracy": over_patients["accuracy"],
        }
    return {"slices": len(part), "patient_groups": len(groups), "models": models}


def _spread(folds: Mapping[str, Any], model: str) -> dict[str, dict[str, float | None]]:
    spread: dict[str, dict[str, float | None]] = {}
    for metric in ("accuracy", "macro_f1", "patient_accuracy"):
        values = [fold["models"][model][metric] for fold in folds.values()]
        spread[metric] = {
            "mean": float(np.mean(values)),
            "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "minimum": min(values),
            "maximum": max(values),
        }
    return spread
