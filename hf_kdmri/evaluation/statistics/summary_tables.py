"""Markdown tables of a summary, for cards and READMEs: headline, per class, comparisons, folds and subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.subsets import SUBSETS

TITLES = {"teacher": "Teacher", "baseline": "Student alone", "student": "Distilled student"}
_HEADLINE = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "MCC",
    "macro_auroc": "Macro AUROC",
    "brier": "Brier (lower is better)",
}
_PER_CLASS = {
    "recall_per_class": "Recall",
    "precision_per_class": "Precision",
    "f1_per_class": "F1",
    "auroc_per_class": "AUROC",
    "average_precision_per_class": "Average precision",
}
_FRACTIONS = {"mcc", "brier", "macro_auroc", "auroc_per_class"}  # shown as 0.912, the rest as 91.2 %
_COMPARED = {"accuracy": "accuracy", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}


def summary_tables(summary: Mapping[str, Any], *, patients: bool = True) -> dict[str, str]:
    """Write the tables of a summary.

    A cell holds the value and, in brackets, its 95 % interval over patient groups; where the summary has no interval
    (too few patients, or no error at all), the value stands alone; "–" is a number that does not exist.

    Args:
        summary: as `summarize` returns it, or as read back from JSON.
        patients: False leaves out scores over patients, for data that do not say whose each image is.

    Returns:
        `headline`, `per_class`, `comparisons`, `folds` and `subsets`, each a table with a newline at its end;
        `comparisons` is empty if there is no student with something to compare it with, `subsets` if all are empty.
    """
    return {
        "headline": _headline(summary, patients),
        "per_class": _per_class(summary),
        "comparisons": _comparisons(summary, patients),
        "folds": _folds(summary, patients),
        "subsets": _subsets(summary),
    }


def _headline(summary: Mapping[str, Any], patients: bool) -> str:
    lines = [
        [
            TITLES[model],
            *(estimate_cell(scores[metric], metric) for metric in _HEADLINE),
            *([estimate_cell(summary["over_patients"]["models"][model]["accuracy"], "accuracy")] if patients else []),
        ]
        for model, scores in summary["over_slices"]["models"].items()
    ]
    return markdown_table(["Model", *_HEADLINE.values(), *(["Patient accuracy"] if patients else [])], lines)


def _per_class(summary: Mapping[str, Any]) -> str:
    lines = [
        [
            name if number == 0 else "",
            TITLES[model],
            *(estimate_cell(scores[metric][name], metric) for metric in _PER_CLASS),
        ]
        for name in summary["class_names"]
        for number, (model, scores) in enumerate(summary["over_slices"]["models"].items())
    ]
    return markdown_table(["Class", "Model", *_PER_CLASS.values()], lines, text_columns=2)


def _comparisons(summary: Mapping[str, Any], patients: bool) -> str:
    lines = []
    for pair in summary["over_slices"]["comparisons"]:
        first, second = pair.split("_minus_")
        title = f"{TITLES[first]} − {TITLES[second].lower()}"
        for unit in ("slices", "patients") if patients else ("slices",):
            comparison = summary[f"over_{unit}"]["comparisons"][pair]
            for metric, name in _COMPARED.items():
                difference = difference_cell(comparison["differences"][metric])
                permutation = p_cell(comparison["permutation_p"][metric])
                exact = p_cell(comparison["mcnemar"]["p"]) if unit == "patients" and metric == "accuracy" else ""
                lines.append([title, f"{name} over {unit}", difference, permutation, exact])
                title = ""  # once for each pair
    heading = ["Comparison", "Metric", "Difference (percentage points)", "p (permutation)", "p (McNemar)"]
    if not patients:  # McNemar's test is on patients
        heading, lines = heading[:-1], [line[:-1] for line in lines]
    return markdown_table(heading, lines, text_columns=2) if lines else ""


def _folds(summary: Mapping[str, Any], patients: bool) -> str:
    models = list(summary["over_slices"]["models"])
    lines = [
        [fold, f"{part['slices']:,}", *([str(part["patient_groups"])] if patients else [])]
        + [f"{100 * part['models'][model]['accuracy']:.1f} %" for model in models]
        for fold, part in summary["folds"].items()
    ]
    if len(lines) > 1:
        spread = [summary["spread_over_folds"][model]["accuracy"] for model in models]
        cells = [f"{100 * s['mean']:.1f} ± {100 * s['standard_deviation']:.1f} %" for s in spread]
        lines.append(["mean ± standard deviation", "", *([""] if patients else []), *cells])
    people = ["Patients"] if patients else []
    return markdown_table(["Fold", "Slices", *people, *(f"{TITLES[model]}: accuracy" for model in models)], lines)


def _subsets(summary: Mapping[str, Any]) -> str:
    models = list(summary["over_slices"]["models"])
    lines = [
        [SUBSETS[name], f"{part['slices']:,}", str(part["patient_groups"])]
        + [estimate_cell(part["models"][model]["accuracy"], "accuracy") for model in models]
        for name, part in summary["subsets"].items()
        if part is not None
    ]
    heading = ["Subset", "Slices", "Patients", *(f"{TITLES[model]}: accuracy" for model in models)]
    return markdown_table(heading, lines) if lines else ""


def estimate_cell(estimate: Mapping[str, Any], metric: str) -> str:
    """A metric's value with its interval in brackets; "–" where it does not exist."""
    if estimate["value"] is None:
        return "–"
    factor, digits, unit = (1, 3, "") if metric in _FRACTIONS else (100, 1, " %")
    value, bounds = f"{factor * estimate['value']:.{digits}f}{unit}", estimate["interval"]
    # "to" where a bound may be negative, a dash elsewhere
    joint = " to " if bounds and bounds[0] < 0 else "–"
    return value if bounds is None else f"{value} ({joint.join(f'{factor * b:.{digits}f}' for b in bounds)})"


def difference_cell(estimate: Mapping[str, Any]) -> str:
    """A difference of two fractions in percentage points, signed, with its interval in brackets."""
    if estimate["value"] is None:
        return "–"
    value, bounds = f"{100 * estimate['value']:+.1f}", estimate["interval"]
    shown = value if bounds is None else f"{value} ({' to '.join(f'{100 * bound:+.1f}' for bound in bounds)})"
    return shown.replace("-", "−")


def p_cell(value: float | None) -> str:
    """A p-value; "–" where the test does not exist."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
