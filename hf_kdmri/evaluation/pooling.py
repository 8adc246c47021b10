"""Results of several folds made one: where models look, and what corruptions cost them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdmri.evaluation.robustness.accuracy import accuracy_draws
from hf_kdmri.evaluation.saliency.figures import plot_saliency_rates
from hf_kdmri.evaluation.saliency.scores import ALL_CLASSES, SaliencyScores, SaliencySummary, summarize_saliency
from hf_kdmri.evaluation.statistics.bootstrap import estimate
from hf_kdmri.evaluation.statistics.predictions import Predictions

SCORES = ("hit", "tolerant_hit", "energy", "chance", "tolerant_chance")


def pool_saliency(parts: Sequence[Mapping[str, Any]], predictions: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """Average the saliency scores of all folds' test images, per class, with 95 % intervals over patient groups.

    Args:
        parts: of each fold, `{model: {"layer", "slice", "problems", *SCORES}}`, lists over its test images; None where
            an image could not be scored.
        predictions: of all folds; its labels and patient groups are looked up by slice.
        seed: of the draws.

    Returns:
        `{model: {"layer": str, "left_out": {reason: count}, "classes": {class: {"n", and for each score "value",
        "interval"}}}}`; the class "all classes" is last. A value is None where no image of the class was scored.

    Raises:
        ValueError: an image without a prediction.
    """
    row_of = {int(number): row for row, number in enumerate(predictions.slices)}
    told: dict[str, Any] = {}
    for model in dict.fromkeys(name for part in parts for name in part):
        mine = [part[model] for part in parts if model in part]
        slices = [number for part in mine for number in part["slice"]]
        if missing := [number for number in slices if number not in row_of]:
            raise ValueError(f"slice {missing[0]} has a saliency map of the {model} but no prediction")
        rows = np.array([row_of[number] for number in slices])
        values = {name: _floats([value for part in mine for value in part[name]]) for name in SCORES}
        problems = [problem for part in mine for problem in part["problems"]]
        scores = SaliencyScores(**values, problems=tuple(problems))
        labels, groups = predictions.labels[rows], predictions.patient_groups[rows]
        told[model] = {
            "layer": ", ".join(dict.fromkeys(part["layer"] for part in mine)),
            "left_out": {reason: problems.count(reason) for reason in sorted(set(problems) - {""})},
            "classes": _classes(scores, labels, groups, predictions.class_names, seed),
        }
    return told


def draw_saliency_rates(pooled: Mapping[str, Any], out: Path, *, subtitle: str = "") -> tuple[Path, Path]:
    """Draw pooled hit rates and energies beside chance, with their intervals.

    Args:
        pooled: as `pool_saliency` gives it, its models titled as they should be shown.
        out: path without ending.
        subtitle: state the split and n here.

    Returns:
        Paths of the PNG and the SVG.
    """
    summaries = {
        model: {
            name: SaliencySummary(
                n=scores["n"],
                left_out=sum(part["left_out"].values()) if name == ALL_CLASSES else 0,
                **{score: np.nan if scores[score]["value"] is None else scores[score]["value"] for score in SCORES},
            )
            for name, scores in part["classes"].items()
        }
        for model, part in pooled.items()
    }
    intervals = {
        model: {
            name: {score: tuple(scores[score]["interval"]) for score in SCORES[:3] if scores[score]["interval"]}
            for name, scores in part["classes"].items()
        }
        for model, part in pooled.items()
    }
    return plot_saliency_rates(summaries, out, intervals=intervals, subtitle=subtitle)


def pool_robustness(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average accuracies under corruption over folds, each fold by its number of pictures.

    Args:
        parts: what `evaluate_robustness` returned for each fold.

    Returns:
        The same fields over all folds; of one fold, that itself. Intervals of several folds are None: patients were not
        drawn over folds.

    Raises:
        ValueError: folds with other models or corruptions.
    """
    first = parts[0]
    if len(parts) == 1:
        return dict(first)
    for part in parts[1:]:
        if part["models"].keys() != first["models"].keys() or part["severities"] != first["severities"]:
            raise ValueError("the folds were tested with other models or corruptions; test them anew with one version")
    share = np.array([part["n"] for part in parts]) / sum(part["n"] for part in parts)
    models = {}
    for model in first["models"]:
        clean = float(share @ [part["models"][model]["clean_accuracy"] for part in parts])
        accuracy = {
            name: (share @ np.array([part["models"][model]["accuracy"][name] for part in parts])).tolist()
            for name in first["severities"]
        }
        drop = {name: clean - float(np.mean(values)) for name, values in accuracy.items()}
        mean = float(np.mean(list(drop.values())))
        models[model] = {
            "clean_accuracy": clean,
            "accuracy": accuracy,
            "drop": drop,
            "mean_drop": mean,
            "relative_drop": mean / clean if clean else None,
            "clean_accuracy_interval": None,
            "mean_drop_interval": None,
            "drop_interval": None,
        }
    seconds = sum(part["seconds"] for part in parts)
    return {
        **first,
        "n": sum(part["n"] for part in parts),
        "n_patients": None,
        "models": models,
        "seconds": seconds,
        "images_per_second": None,
    }


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _classes(
    scores: SaliencyScores, labels: NDArray[Any], groups: NDArray[Any], class_names: Sequence[str], seed: int
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for number, (name, summary) in enumerate(summarize_saliency(scores, labels, class_names).items()):
        chosen = scores.scored & ((labels == number) | (number == len(class_names)))
        told[name] = {"n": summary.n}
        if not summary.n:
            told[name] |= {score: {"value": None, "interval": None} for score in SCORES}
            continue
        values = np.array([getattr(scores, score)[chosen] for score in SCORES])
        drawn, count = accuracy_draws(values, groups[chosen], seed=seed), len(np.unique(groups[chosen]))
        told[name] |= {score: estimate(drawn[:, column], count) for column, score in enumerate(SCORES)}
    return told
