"""Markdown tables of a run beside those of its scores: cost, convergence, calibration, saliency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_kdmri.evaluation.figures.convergence import duration
from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.summary_tables import TITLES, estimate_cell


def cost_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What each model costs to use.

    Args:
        rows: one per model, as `model_row` gives them.
    """
    lines = [
        [
            row["model"],
            row["architecture"],
            f"{100 * row['accuracy']:.1f} %",
            f"{row['parameters'] / 1e6:.2f} M",
            "–" if row.get("flops") is None else f"{row['flops'] / 1e9:.2f}",
            "–" if row.get("megabytes") is None else f"{row['megabytes']:.1f}",
            f"{row['image_size']} px",
            f"{row['ms_per_image']:.1f}",
        ]
        for row in rows.values()
    ]
    heading = ["Model", "Architecture", "Accuracy", "Parameters", "GFLOPs", "MB on disk", "Input", "ms per picture"]
    return markdown_table(heading, lines, text_columns=2)


def convergence_table(told: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Best validation accuracy, gap, and epochs to the baseline's best, of every fold and model; "" without any.

    Args:
        told: by fold and model, as `hf_kdmri.evaluation.convergence.convergence` gives them.
    """
    lines: list[list[str]] = []
    for fold, models in told.items():
        for place, (model, part) in enumerate(models.items()):
            gap, reached = part["gap"], part.get("to_baseline_best")
            epochs = "–" if reached is None else _epochs(reached)
            lines.append(
                [
                    fold if not place else "",
                    TITLES[model],
                    f"{100 * part['best_validation_accuracy']:.1f} %",
                    "–" if gap["last"] is None else _signed(gap["last"]),
                    "–" if gap["trend"] is None else _signed(gap["trend"], digits=2),
                    epochs,
                ]
            )
    heading = [
        "Fold",
        "Model",
        "Best validation accuracy",
        "Gap at the end, points",
        "Trend, points per epoch",
        "Epochs to the best of the student alone",
    ]
    return markdown_table(heading, lines, text_columns=2) if lines else ""


def calibration_table(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Calibration and coverage of each model, as trained and after temperature scaling.

    Args:
        told: by model, as `evaluate_folds` gives it under `calibration`.
    """
    lines: list[list[str]] = []
    for model, part in told.items():
        temperatures = [value for value in part["temperatures"].values() if value is not None]
        for state, scores in (("as trained", part["before"]), ("temperature", part["after"])):
            if scores is None:
                continue
            shown = ", ".join(f"{value:.2f}" for value in temperatures)
            coverage = scores["accuracy_at_coverage"].values()
            lines.append(
                [
                    TITLES[model] if state == "as trained" else "",
                    state if state == "as trained" else f"temperature {shown}",
                    f"{scores['ece']:.3f}",
                    f"{scores['ece_of_a_calibrated_model']:.3f}",
                    f"{scores['brier']:.3f}",
                    f"{scores['negative_log_likelihood']:.3f}",
                    *(f"{100 * accuracy:.1f} %" for accuracy in coverage),
                ]
            )
    coverages = next(iter(told.values()))["before"]["accuracy_at_coverage"]
    heading = ["Model", "Probabilities", "ECE", "ECE if calibrated", "Brier", "NLL, nats"]
    heading += [f"Accuracy at {100 * float(coverage):.0f} % coverage" for coverage in coverages]
    return markdown_table(heading, lines, text_columns=2)


def saliency_table(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Hits and energy beside chance, per model and class.

    Args:
        told: as `hf_kdmri.evaluation.pooling.pool_saliency` gives it.
    """
    lines = []
    for model, part in told.items():
        for place, (name, scores) in enumerate(part["classes"].items()):
            cells = [
                estimate_cell(scores[score], score)
                for score in ("hit", "chance", "tolerant_hit", "tolerant_chance", "energy")
            ]
            lines.append([TITLES[model] if not place else "", name, f"{scores['n']:,}", *cells])
    heading = [
        "Model",
        "Class",
        "Pictures",
        "Hit",
        "Chance",
        "Hit within 15 px",
        "Chance within 15 px",
        "Energy inside",
    ]
    return markdown_table(heading, lines, text_columns=2)


def _epochs(reached: Mapping[str, Any]) -> str:
    if reached["epoch"] is None:
        return "never"
    return f"{reached['epoch']:g}" + ("" if reached["seconds"] is None else f" ({duration(reached['seconds'])})")


def _signed(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:+.{digits}f}".replace("-", "−")
