"""The tables of a student's card, as Markdown with escaped cells; "" where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.robustness.accuracy import robustness_table
from hf_kdmri.evaluation.run_tables import calibration_table, cost_table, saliency_table
from hf_kdmri.evaluation.statistics.summary_tables import TITLES, estimate_cell, summary_tables

_COLUMNS = 6
_PATIENT_SCORES = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "balanced_accuracy": "Balanced accuracy"}


def recall_table(results: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """One row per model, or per class where these are too many for one line."""
    rows = [row for row in results if row.get("recall_per_class")]
    if not rows:
        return ""
    recalls = {row["model"]: [_percent(row["recall_per_class"].get(label)) for label in labels] for row in rows}
    if len(labels) <= _COLUMNS:
        return markdown_table(["Model", *labels], [[model, *cells] for model, cells in recalls.items()])
    return markdown_table(["Class", *recalls], [list(line) for line in zip(labels, *recalls.values(), strict=True)])


def patient_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Scores over patients, from rows that carry `patients`."""
    rows = [row for row in results if row.get("patients")]
    if not rows:
        return ""
    lines = [
        [row["model"], *(_percent(row["patients"][key]) for key in _PATIENT_SCORES), str(row["patients"]["n"])]
        for row in rows
    ]
    return markdown_table(["Model", *_PATIENT_SCORES.values(), "n (patients)"], lines)


def evaluation_tables(
    evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, patients: bool
) -> dict[str, str]:
    """Every table that a run's evaluation gives.

    Args:
        evaluation: as `evaluate_folds` of `hf_kdmri.training.report.pooling` gives it and `metrics.json` keeps it.
        rows: one per model, as the run's table has them.
        patients: False leaves out scores over patients.

    Returns:
        `headline`, `per_class`, `comparisons`, `folds`, `patients`, `cost`, `calibration`, `saliency`, `robustness`.
    """
    summary = evaluation["summary"]
    tables = summary_tables(summary, patients=patients)
    if len(summary["folds"]) < 2:
        tables["folds"] = ""
    tables["patients"] = _patients(summary) if patients else ""
    tables["cost"] = cost_table({row["model"]: row for row in rows}) if all(map(_has_cost, rows)) else ""
    tables["calibration"] = calibration_table(evaluation["calibration"])
    tables["saliency"] = saliency_table(evaluation["saliency"]) if evaluation["saliency"] else ""
    robustness = evaluation["robustness"]
    if robustness:
        robustness = {**robustness, "models": {TITLES[model]: part for model, part in robustness["models"].items()}}
    tables["robustness"] = robustness_table(robustness) if robustness else ""
    return tables


def _patients(summary: Mapping[str, Any]) -> str:
    over = summary["over_patients"]
    lines = [
        [TITLES[model], *(estimate_cell(scores[key], key) for key in _PATIENT_SCORES), f"{over['n']:,}"]
        for model, scores in over["models"].items()
    ]
    return markdown_table(["Model", *_PATIENT_SCORES.values(), "n (patients)"], lines)


def _has_cost(row: Mapping[str, Any]) -> bool:
    return all(row.get(key) is not None for key in ("parameters", "image_size", "ms_per_image"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
