"""From finished folds to pooled numbers, figures and one page that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from hf_kdmri.evaluation.calibration import (
    brier_score,
    calibration_error_floor,
    expected_calibration_error,
    negative_log_likelihood,
)
from hf_kdmri.evaluation.calibration.selective import risk_coverage
from hf_kdmri.evaluation.calibration.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    log_probabilities,
)
from hf_kdmri.evaluation.convergence import convergence
from hf_kdmri.evaluation.pooling import pool_robustness, pool_saliency
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.summary import summarize
from hf_kdmri.training.run_folder import RunFolder

SCHEMA = "hf_kdmri/metrics/2"
COVERAGES = (0.8, 0.9)


@dataclass(frozen=True)
class FinishedFold:
    """One fold whose models are tested.

    Args:
        run: its folder.
        facts: of the run, as `run_facts` gives them.
        rows: one per model, as `model_row` gives them.
    """

    run: RunFolder
    facts: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]

    def predictions(self, split: str = "test") -> Predictions:
        """Of this fold's test or validation images."""
        return Predictions.read(self.run.predictions_file(split), disjoint_groups=self.disjoint)

    @property
    def name(self) -> str:
        """Number of the fold; 0, as in the predictions, where the set brought its own splits."""
        return str(self.facts["fold"] or 0)

    @property
    def disjoint(self) -> bool:
        """Whether no patient stands in two splits."""
        return self.facts["split"] != "random_slices"


def finished_folds(run: RunFolder, numbers: Sequence[int]) -> list[FinishedFold]:
    """Read the finished folds of a run over several.

    Raises:
        ValueError: a fold is not finished.
    """
    folds = []
    for number in numbers:
        metrics = run.fold(number).read_metrics()
        if metrics is None:
            raise ValueError(f"{run.fold(number).path} is not finished; run the same command again")
        folds.append(FinishedFold(run.fold(number), metrics["run"], metrics["models"]))
    return folds


def pool(folds: Sequence[FinishedFold]) -> Predictions:
    """Test predictions of all folds: each image once, by the model that never saw its patient group."""
    parts = [fold.predictions() for fold in folds]
    return Predictions.concatenate(parts, disjoint_groups=folds[0].disjoint)


def evaluate_folds(folds: Sequence[FinishedFold], predictions: Predictions, *, draws: int = 2000) -> dict[str, Any]:
    """Everything that is measured on the folds together, ready for JSON.

    Args:
        folds: finished.
        predictions: of all of them, from `pool`.
        draws: of the bootstrap over patient groups.

    Returns:
        `summary`, `calibration`, `convergence` (by fold), and `saliency` and `robustness` where they were measured.
    """
    seed = folds[0].facts["seed"]
    evaluation: dict[str, Any] = {
        "summary": summarize(predictions, draws=draws, seed=seed),
        "calibration": _calibration(folds),
        "convergence": {fold.name: convergence(fold.run.read_history()) for fold in folds},
        "saliency": None,
        "saliency_refused": {},
        "robustness": None,
    }
    looked = [fold.run.read_json(fold.run.saliency_file) for fold in folds]
    if all(part is not None for part in looked):
        parts = [part for part in looked if part is not None]
        evaluation["saliency"] = pool_saliency([part["models"] for part in parts], predictions, seed=seed) or None
        evaluation["saliency_refused"] = {model: why for part in parts for model, why in part["refused"].items()}
    corrupted = [fold.run.read_json(fold.run.robustness_file) for fold in folds]
    if all(part is not None for part in corrupted):
        evaluation["robustness"] = pool_robustness([part for part in corrupted if part is not None])
    return evaluation


def pooled_rows(folds: Sequence[FinishedFold], summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One row per model over all folds: pooled scores, the size of a fold's model, the median of the times.

    Args:
        folds: finished.
        summary: of their pooled predictions.
    """
    rows = {}
    for model, scores in summary["over_slices"]["models"].items():
        mine = [fold.rows[model] for fold in folds]
        rows[model] = {
            **{key: mine[0][key] for key in ("model", "unit", "architecture", "image_size", "parameters")},
            **{key: mine[0].get(key) for key in ("flops", "megabytes")},
            "ms_per_image": median(row["ms_per_image"] for row in mine),
            "n": summary["slices"],
            "accuracy": scores["accuracy"]["value"],
            "macro_f1": scores["macro_f1"]["value"],
            "balanced_accuracy": scores["balanced_accuracy"]["value"],
            "recall_per_class": {name: recall["value"] for name, recall in scores["recall_per_class"].items()},
            "confusion_matrix": scores["confusion_matrix"],
            "patient_accuracy": summary["over_patients"]["models"][model]["accuracy"]["value"]
            if any("patient_accuracy" in row for row in mine)
            else None,
        }
    return rows


def temperature_of(validation: Predictions, model: str) -> Temperature | str:
    """The temperature that the validation images ask for, or why none can be fitted."""
    try:
        return fit_temperature(
            log_probabilities(validation.probabilities[model]),
            validation.labels,
            split="validation",
            groups=validation.patient_groups,
        )
    except ValueError as error:
        return str(error)


def calibrated(fold: FinishedFold, model: str) -> np.ndarray | None:
    """Test probabilities of a fold's model, divided by its temperature; None where it has none."""
    temperature = temperature_of(fold.predictions("validation"), model)
    if isinstance(temperature, str):
        return None
    test = fold.predictions()
    # Where patients stand on both sides of the split, there is nothing to keep apart.
    groups = test.patient_groups if fold.disjoint else None
    return apply_temperature(log_probabilities(test.probabilities[model]), temperature, groups=groups)


def _calibration(folds: Sequence[FinishedFold]) -> dict[str, Any]:
    pooled = pool(folds)
    told: dict[str, Any] = {}
    for model, probabilities in pooled.probabilities.items():
        fitted = [temperature_of(fold.predictions("validation"), model) for fold in folds]
        after = [part for fold in folds if (part := calibrated(fold, model)) is not None]
        told[model] = {
            "temperatures": {
                fold.name: None if isinstance(value, str) else value.value
                for fold, value in zip(folds, fitted, strict=True)
            },
            "not_fitted": sorted({value for value in fitted if isinstance(value, str)}),
            "before": _calibration_scores(probabilities, pooled.labels),
            "after": _calibration_scores(np.concatenate(after), pooled.labels) if len(after) == len(folds) else None,
        }
    return told


def _calibration_scores(probabilities: Any, labels: Any) -> dict[str, Any]:
    curve = risk_coverage(probabilities, labels)
    return {
        "ece": expected_calibration_error(probabilities, labels),
        "ece_of_a_calibrated_model": calibration_error_floor(probabilities),
        "brier": brier_score(probabilities, labels),
        "negative_log_likelihood": negative_log_likelihood(probabilities, labels),
        "risk_coverage_area": curve.area,
        "accuracy_at_coverage": {f"{coverage:g}": curve.accuracy_at(coverage) for coverage in COVERAGES},
    }


def config_of(run: RunFolder) -> dict[str, Any]:
    """The options that a run was made with."""
    return yaml.safe_load(Path(run.path / "config.yaml").read_text(encoding="utf-8"))
