"""How training went, from its history: the gap between training and validation, and how soon it reached an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ACCURACIES = (0.7, 0.8, 0.85, 0.9, 0.95)


def generalisation_gap(history: Sequence[Mapping[str, Any]], stage: str) -> dict[str, Any]:
    """Training minus validation accuracy over the epochs of one stage, and its trend.

    The training accuracy is that of the augmented views while the weights still changed, so the gap is smaller than one
    measured afterwards on the plain images; it compares runs, not protocols.

    Args:
        history: rows of `history.jsonl` with `stage`, `epoch`, `train_accuracy` or `eval_accuracy` (fractions).
        stage: "teacher", "baseline" or "student".

    Returns:
        `epochs`, `gap` (fractions), `last` (mean of the last tenth of the epochs, at least one), and `trend`: the slope
        of a straight line through the second half, in accuracy per epoch, None for fewer than three epochs there. All
        values are None, or empty, where the history has no such rows.

    Example:
        >>> rows = [{"stage": "student", "epoch": e, "train_accuracy": 0.5 + 0.1 * e} for e in (1, 2, 3, 4, 5, 6)]
        >>> rows += [{"stage": "student", "epoch": e, "eval_accuracy": 0.6} for e in (1, 2, 3, 4, 5, 6)]
        >>> result = generalisation_gap(rows, "student")
        >>> round(result["last"], 3), round(result["trend"], 3)
        (0.5, 0.1)
    """
    train, validation = _curve(history, stage, "train_accuracy"), _curve(history, stage, "eval_accuracy")
    epochs = sorted(train.keys() & validation.keys())
    gap = [train[epoch] - validation[epoch] for epoch in epochs]
    half = len(epochs) // 2
    trend = float(np.polyfit(epochs[half:], gap[half:], 1)[0]) if len(epochs) - half >= 3 else None
    last = float(np.mean(gap[-max(1, len(gap) // 10) :])) if gap else None
    return {"epochs": epochs, "gap": gap, "last": last, "trend": trend}


def time_to_accuracy(
    history: Sequence[Mapping[str, Any]], stage: str, accuracies: Sequence[float] = ACCURACIES
) -> list[dict[str, Any]]:
    """The first epoch, and the seconds of training until then, at which validation reached each accuracy.

    A single lucky epoch counts; read it beside the curve. Seconds include the validations and are of the machine at
    hand.

    Args:
        history: rows of `history.jsonl` with `stage`, `epoch`, `eval_accuracy` and, where known, `seconds`.
        stage: "teacher", "baseline" or "student".
        accuracies: fractions.

    Returns:
        One dict per accuracy: `accuracy`, `epoch` and `seconds`, None where it was never reached or is not known.

    Example:
        >>> rows = [{"stage": "student", "epoch": 1, "eval_accuracy": 0.6, "seconds": 10.0}]
        >>> rows += [{"stage": "student", "epoch": 2, "eval_accuracy": 0.8, "seconds": 20.0}]
        >>> time_to_accuracy(rows, "student", [0.75, 0.9])
        [{'accuracy': 0.75, 'epoch': 2, 'seconds': 20.0}, {'accuracy': 0.9, 'epoch': None, 'seconds': None}]
    """
    validation, seconds = _curve(history, stage, "eval_accuracy"), _curve(history, stage, "seconds", "eval_accuracy")
    reached = []
    for accuracy in accuracies:
        epoch = next((epoch for epoch in sorted(validation) if validation[epoch] >= accuracy), None)
        reached.append({"accuracy": accuracy, "epoch": epoch, "seconds": None if epoch is None else seconds.get(epoch)})
    return reached


def convergence(
    history: Sequence[Mapping[str, Any]], accuracies: Sequence[float] = ACCURACIES
) -> dict[str, dict[str, Any]]:
    """Gap, best validation accuracy and time to accuracies of every stage, and to the baseline's best accuracy.

    Args:
        history: rows of `history.jsonl`.
        accuracies: fractions.

    Returns:
        For each stage in the history: `gap`, `best_validation_accuracy`, `time_to`, and, where there is a baseline,
        `to_baseline_best`, one dict as `time_to_accuracy` gives them.
    """
    stages = dict.fromkeys(str(row["stage"]) for row in history if "eval_accuracy" in row)
    best = {stage: max(_curve(history, stage, "eval_accuracy").values()) for stage in stages}
    told: dict[str, dict[str, Any]] = {}
    for stage in stages:
        told[stage] = {
            "gap": generalisation_gap(history, stage),
            "best_validation_accuracy": best[stage],
            "time_to": time_to_accuracy(history, stage, accuracies),
        }
        if "baseline" in best:
            told[stage]["to_baseline_best"] = time_to_accuracy(history, stage, [best["baseline"]])[0]
    return told


def _curve(history: Sequence[Mapping[str, Any]], stage: str, key: str, beside: str | None = None) -> dict[float, float]:
    """Values of one quantity by epoch, the last where there are several; only from rows that also have `beside`."""
    return {
        row["epoch"]: float(row[key])
        for row in history
        if row.get("stage") == stage and row.get(key) is not None and (beside is None or row.get(beside) is not None)
    }
