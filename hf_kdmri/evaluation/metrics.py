"""Classification metrics over slices and over patients, as pure functions and as one `evaluate.Metric`.

A slice is one image; a patient is every slice that shares a group id. A patient's probabilities are the mean over
the patient's slices. scikit-learn computes every number; this file decides what is refused and what is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

SUM_TOLERANCE = 1e-3  # half precision softmax rows miss 1 by up to about 5e-4

_DESCRIPTION = (
    "Accuracy, macro F1, balanced accuracy, MCC, Brier score, areas under ROC and precision-recall curves, precision, "
    "recall and F1 per class, and the confusion matrix, per slice and per patient."
)
_INPUTS = """
Args:
    predictions: probabilities, (N, C), each row sums to 1.
    references: labels, (N,), integers 0..C-1.
    groups: patient ids, (N,), optional; adds the same metrics over patients.
    class_names: C names in label order; needed here if not given at construction.
"""


def check_probabilities(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities as float64 (N, C) and labels as int64 (N,), or refuse them by name.

    Args:
        probabilities: (N, C), each row non-negative with sum 1.
        labels: (N,), integers 0..C-1.
        class_names: C different names in label order.

    Raises:
        ValueError: Shapes that do not match, no rows, labels out of range, probabilities that are not finite,
            negative or do not sum to 1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    names = list(class_names)
    if isinstance(class_names, str) or len(set(names)) != len(names):
        raise ValueError(f"class_names must be a list of different names, got {class_names!r}")
    if p.ndim != 2 or p.shape[1] != len(names):
        raise ValueError(
            f"probabilities have shape {p.shape}; expected (N, {len(names)}), one column for each of {names}. "
            "Pass softmax outputs, not predicted labels."
        )
    if y.shape != p.shape[:1]:
        raise ValueError(f"labels have shape {y.shape}; expected ({p.shape[0]},), one for each row of probabilities")
    if not len(y):
        raise ValueError("there is nothing to score: 0 predictions. Check the split or --max_eval_samples.")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels have type {y.dtype}; expected integers 0..{len(names) - 1} in the order of {names}")
    if (outside := np.flatnonzero((y < 0) | (y >= len(names)))).size:
        raise ValueError(
            f"label {y[outside[0]]} in row {outside[0]} is out of range ({outside.size} such rows); "
            f"expected 0..{len(names) - 1} for {names}"
        )
    if (bad := np.flatnonzero(~np.isfinite(p).all(axis=1))).size:
        raise ValueError(
            f"probabilities in row {bad[0]} are not finite: {p[bad[0]].tolist()} ({bad.size} such rows). "
            "The model diverged, or ran in half precision outside its range."
        )
    wrong = np.flatnonzero((np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE) | (p < 0).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"probabilities in row {wrong[0]} are {p[wrong[0]].tolist()} and sum to {p[wrong[0]].sum():.4f} "
            f"({wrong.size} such rows); expected values >= 0 that sum to 1 within {SUM_TOLERANCE}. "
            "Logits need a softmax first."
        )
    return p, y.astype(np.int64)


def classification_metrics(probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]) -> dict[str, Any]:
    """Score predicted probabilities against labels; the prediction is the class of highest probability.

    Classes without a single true slice need a decision, since small samples have them:
    `macro_f1` averages over **all** C classes and counts a class with no true and no predicted slice as 0, so a
    number from an incomplete sample is never flattering; `balanced_accuracy`, `macro_auroc` and
    `macro_average_precision` average over the classes where the number exists. A number that is 0 / 0 is `None`:
    the recall of a class without true slices, the precision of one never predicted, the F1 of one with neither, the
    areas of a class that no slice or every slice has, and Matthews' correlation of slices of a single class (of
    predictions of a single class it is 0: they tell nothing).

    Args:
        probabilities: (N, C), each row non-negative with sum 1.
        labels: (N,), integers 0..C-1.
        class_names: C names in label order.

    Returns:
        Plain Python, ready for JSON: `accuracy`, `macro_f1`, `balanced_accuracy`, `macro_auroc`,
        `macro_average_precision` (fractions 0..1), `mcc` (-1..1), `brier` (0..2, lower is better: the squared
        distance between the probabilities and the one-hot label, averaged over slices); `recall_per_class`,
        `precision_per_class`, `f1_per_class`, `auroc_per_class` and `average_precision_per_class` (name to fraction
        or None; the last two take the class against the rest); `confusion_matrix` (C lists of C counts, rows true,
        columns predicted) and `n`.

    Raises:
        ValueError: Shapes that do not match, no rows, labels out of range, probabilities that are not finite,
            negative or do not sum to 1.

    Example:
        >>> report = classification_metrics([[0.9, 0.1], [0.6, 0.4]], [0, 1], ["glioma", "pituitary"])
        >>> report["accuracy"], report["recall_per_class"]
        (0.5, {'glioma': 1.0, 'pituitary': 0.0})
    """
    p, y = check_probabilities(probabilities, labels, class_names)
    predicted, classes = p.argmax(axis=1), np.arange(p.shape[1])
    precision, recall, f1, _ = precision_recall_fscore_support(
        y, predicted, labels=classes, average=None, zero_division=np.nan
    )
    # scikit-learn warns or answers with a constant where one side of the curve is empty
    ranked = [c for c in classes if 0 < (y == c).sum() < len(y)]
    auroc, average_precision = np.full(len(classes), np.nan), np.full(len(classes), np.nan)
    for c in ranked:
        auroc[c] = roc_auc_score(y == c, p[:, c])
        average_precision[c] = average_precision_score(y == c, p[:, c])

    def named(values: NDArray[np.float64]) -> dict[str, float | None]:
        return {n: None if np.isnan(v) else float(v) for n, v in zip(class_names, values, strict=True)}

    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "macro_f1": float(f1_score(y, predicted, labels=classes, average="macro", zero_division=0)),
        "balanced_accuracy": float(np.nanmean(recall)),
        "mcc": float(matthews_corrcoef(y, predicted)) if len(np.unique(y)) > 1 else None,
        "macro_auroc": float(auroc[ranked].mean()) if ranked else None,
        "macro_average_precision": float(average_precision[ranked].mean()) if ranked else None,
        "brier": float(((p - np.eye(len(classes))[y]) ** 2).sum(axis=1).mean()),
        "recall_per_class": named(recall),
        "precision_per_class": named(precision),
        "f1_per_class": named(f1),
        "auroc_per_class": named(auroc),
        "average_precision_per_class": named(average_precision),
        "confusion_matrix": confusion_matrix(y, predicted, labels=classes).tolist(),
        "n": len(y),
    }


def patient_metrics(
    probabilities: ArrayLike, labels: ArrayLike, groups: Sequence[Any] | NDArray[Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """Score patients: the mean probability over a patient's slices against the patient's one label.

    Args:
        probabilities: (N, C), each row non-negative with sum 1.
        labels: (N,), integers 0..C-1.
        groups: (N,), patient ids, strings or numbers, none missing.
        class_names: C names in label order.

    Returns:
        The keys of `classification_metrics`; `n` counts patients.

    Raises:
        ValueError: As `classification_metrics`, and when `groups` has another length, has a missing id, or a
            patient carries two labels. In this data every patient has one tumour class, so two labels mean that
            ids were mixed up, and a majority vote would hide it.

    Example:
        >>> p = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]
        >>> patient_metrics(p, [0, 0, 1], ["a", "a", "b"], ["glioma", "pituitary"])["accuracy"]
        1.0
    """
    p, y = check_probabilities(probabilities, labels, class_names)
    ids = np.asarray([str(g) if g is not None and g == g else "" for g in groups])
    if ids.shape != y.shape:
        raise ValueError(f"groups have shape {ids.shape}; expected ({len(y)},), one patient id for each row")
    if (missing := np.flatnonzero(ids == "")).size:
        raise ValueError(f"the patient id in row {missing[0]} is missing ({missing.size} such rows)")
    patients, first, inverse, sizes = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    if (mixed := np.flatnonzero(y != y[first][inverse])).size:
        row = mixed[0]
        both = [class_names[y[first][inverse[row]]], class_names[y[row]]]
        raise ValueError(
            f"patient {str(ids[row])!r} has two labels, {both[0]} and {both[1]} (row {row}); expected one per patient. "
            "Check that groups and labels come from the same rows."
        )
    sums = np.zeros((len(patients), p.shape[1]))
    np.add.at(sums, inverse, p)
    return classification_metrics(sums / sizes[:, None], y[first], class_names)


class ClassificationReport(evaluate.Metric):
    """`evaluate.Metric` around `classification_metrics` and `patient_metrics`.

    Works offline, keeps everything in memory, writes nothing to disk and takes no file locks; a lock of its own lets
    threads share one. In distributed evaluation, gather first and call it on rank 0.

    Args:
        class_names: C names in label order; may be given to `compute` instead.

    `compute` returns the keys of `classification_metrics`; with `groups`, also `patients` (the same keys over
    patients) and its scalars flat, for logs: `patient_accuracy`, `patient_macro_f1`, `patient_balanced_accuracy`.

    Example:
        >>> report = ClassificationReport(["glioma", "pituitary"])
        >>> result = report.compute(predictions=[[0.9, 0.1], [0.4, 0.6]], references=[0, 0], groups=["a", "a"])
        >>> result["accuracy"], result["patient_accuracy"]
        (0.5, 1.0)
    """

    def __init__(self, class_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Store the class names; `kwargs` go to `evaluate.Metric`."""
        super().__init__(keep_in_memory=True, **kwargs)
        self.class_names = None if class_names is None else list(class_names)
        self._lock = threading.Lock()

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # the parent creates a cache folder here, which a metric in memory never uses

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Compute the report over what is given here or was added before."""
        with self._lock:
            return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: ArrayLike,
        references: ArrayLike,
        groups: Sequence[Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        names = class_names if class_names is not None else self.class_names
        if names is None:
            raise ValueError(
                "class names are missing: ClassificationReport(class_names=[...]) or compute(class_names=…)"
            )
        report = classification_metrics(predictions, references, names)
        if groups is not None:
            patients = patient_metrics(predictions, references, groups, names)
            report["patients"] = patients
            report |= {f"patient_{key}": patients[key] for key in ("accuracy", "macro_f1", "balanced_accuracy")}
        return report
