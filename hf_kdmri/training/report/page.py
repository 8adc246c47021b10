"""The figures and the page of a run, from what its folds left on disk: it can be made again at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_kdmri.evaluation import plot_comparison, results_table
from hf_kdmri.evaluation.calibration.figures import plot_reliability, plot_risk_coverage
from hf_kdmri.evaluation.figures.confusion import plot_confusion_matrices
from hf_kdmri.evaluation.figures.convergence import plot_convergence
from hf_kdmri.evaluation.figures.fold_curves import plot_fold_curves
from hf_kdmri.evaluation.pooling import draw_saliency_rates
from hf_kdmri.evaluation.report_page import Block, KeyNumber, Page, Section, code, figure, render_page, table, text
from hf_kdmri.evaluation.run_tables import (
    calibration_table,
    convergence_table,
    cost_table,
    saliency_table,
)
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.summary_tables import TITLES, summary_tables
from hf_kdmri.training.report.pooling import FinishedFold, calibrated, config_of
from hf_kdmri.training.report.words import ReportWords
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.whole_files import write_whole


def write_report(
    run: RunFolder,
    folds: Sequence[FinishedFold],
    predictions: Predictions,
    evaluation: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> Path:
    """Draw the pooled figures, write the tables as Markdown and everything as `report.html`.

    Args:
        run: the folder to write to.
        folds: finished.
        predictions: of all folds.
        evaluation: of `evaluate_folds`.
        rows: of `pooled_rows`.
        facts: what the run was: `source`, `split`, `folds`, `seed`, `command`, `versions`, `machine`, `phantom`.

    Returns:
        The page.
    """
    report = _Report(run, folds, predictions, evaluation, rows, facts)
    sections = [section for section in report.sections() if section.blocks]
    page = Page(
        title=f"{' and '.join(report.words.taught())}: teacher, student alone, distilled student",
        lead=report.words.lead(),
        warnings=report.words.warnings(),
        keys=report.keys(),
        sections=sections,
        footer=report.words.footer(),
    )
    path = run.path / "report.html"
    write_whole(path, render_page(page))
    (run.path / "tables").mkdir(exist_ok=True)
    for name, markdown in report.tables.items():
        write_whole(run.path / "tables" / f"{name}.md", markdown)
    return path


class _Report:
    def __init__(
        self,
        run: RunFolder,
        folds: Sequence[FinishedFold],
        predictions: Predictions,
        evaluation: Mapping[str, Any],
        rows: Mapping[str, Mapping[str, Any]],
        facts: Mapping[str, Any],
    ) -> None:
        self.run, self.folds, self.predictions = run, folds, predictions
        self.evaluation, self.rows, self.facts = evaluation, rows, facts
        self.summary = evaluation["summary"]
        self.words = ReportWords(folds, self.summary, rows, facts)
        self.figures = run.path / "figures"
        self.figures.mkdir(exist_ok=True)
        self.unit = self.words.unit
        self.subtitle = f"{facts['source']}, split {facts['split']}, {self.words.which_folds()}, test"
        self.tables = {
            name: markdown
            for name, markdown in summary_tables(self.summary, patients=self.words.has_patients()).items()
            if markdown
        }
        self.tables["models"] = results_table(list(rows.values()))
        self.tables["cost"] = cost_table(rows)

    def keys(self) -> list[KeyNumber]:
        keys = []
        for model, scores in self.summary["over_slices"]["models"].items():
            keys.append(_key(f"{TITLES[model]}: accuracy", scores["accuracy"]))
        for pair, comparison in self.summary["over_slices"]["comparisons"].items():
            first, second = pair.split("_minus_")
            name = f"{TITLES[first]} − {TITLES[second].lower()}, points"
            keys.append(_key(name, comparison["differences"]["accuracy"], signed=True))
        return keys

    def sections(self) -> list[Section]:
        return [
            Section("Results", self._results()),
            Section("Classes", self._classes()),
            Section("Training", self._training()),
            Section("Predictions", self._per_fold("predictions", "Test pictures drawn at random, wrong ones framed")),
            Section("Size and speed", self._cost()),
            Section("Calibration and abstention", self._calibration()),
            Section("Where the models look", self._saliency()),
            Section("Robustness", self._robustness()),
            Section("Subsets and folds", self._subsets()),
            Section("How it was made", self._made()),
        ]

    def _results(self) -> list[Block]:
        blocks = [table(self.tables["headline"])]
        if "comparisons" in self.tables:
            blocks += [
                table(self.tables["comparisons"]),
                text(self.words.tests(), quiet=True),
            ]
        return blocks

    def _classes(self) -> list[Block]:
        matrices = {
            TITLES[model]: scores["confusion_matrix"] for model, scores in self.summary["over_slices"]["models"].items()
        }
        png, _ = plot_confusion_matrices(
            matrices, self.summary["class_names"], self.figures / "confusion", subtitle=self.subtitle
        )
        return [figure(png, "Confusion matrices of the models"), table(self.tables["per_class"])]

    def _training(self) -> list[Block]:
        blocks = self._curves()
        for fold in self.folds:
            told = self.evaluation["convergence"][fold.name]
            if told:
                png, _ = plot_convergence(
                    told,
                    fold.run.path / "figures" / "convergence",  # a push of the fold takes it from there
                    subtitle=f"{fold.facts['source']}, fold {fold.name}",
                )
                blocks.append(
                    figure(png, "Generalisation gap and epochs to given validation accuracies", self._caption(fold))
                )
        if markdown := convergence_table(self.evaluation["convergence"]):
            self.tables["convergence"] = markdown
            blocks.append(table(markdown))
            blocks.append(
                text(
                    "The gap is training minus validation accuracy, training measured on augmented views while the "
                    "weights still changed; its trend is the slope of a straight line through the second half of the "
                    "epochs.",
                    quiet=True,
                )
            )
        return blocks

    def _curves(self) -> list[Block]:
        alt = "Loss and accuracy before and after distillation"
        if len(self.folds) == 1 or not any(self.evaluation["convergence"].values()):
            return self._per_fold("training_curves", alt)
        histories = {fold.name: fold.run.read_history() for fold in self.folds}
        title = self.subtitle.removesuffix(" pooled, test")
        png, _ = plot_fold_curves(histories, self.figures / "training_curves", subtitle=title)
        return [figure(png, alt, "Training loss is the cross-entropy term, on augmented views.")]

    def _per_fold(self, name: str, alt: str) -> list[Block]:
        pictures = [(fold, fold.run.path / "figures" / f"{name}.png") for fold in self.folds]
        return [figure(png, alt, self._caption(fold)) for fold, png in pictures if png.is_file()]

    def _caption(self, fold: FinishedFold) -> str:
        return f"Fold {fold.name}" if len(self.folds) > 1 else ""

    def _cost(self) -> list[Block]:
        png, _ = plot_comparison(list(self.rows.values()), self.figures / "comparison", subtitle=self.subtitle)
        note = (
            "Milliseconds are the median of single pictures on this machine, PyTorch in float32, without reading the "
            "file. A multiply-add counts as two operations."
        )
        return [
            figure(png, "Teacher, student alone and distilled student"),
            table(self.tables["cost"]),
            text(note, quiet=True),
        ]

    def _calibration(self) -> list[Block]:
        told, labels = self.evaluation["calibration"], self.predictions.labels
        self.tables["calibration"] = calibration_table(told)
        scores: dict[str, Any] = {"as trained": self.predictions.probabilities["student"]}
        parts = [calibrated(fold, "student") for fold in self.folds]
        if not any(part is None for part in parts):
            scores["after temperature scaling"] = np.concatenate([part for part in parts if part is not None])
        reliability, _ = plot_reliability(
            scores,
            labels,
            self.figures / "reliability",
            unit=self.unit,
            title="Is it right as often as it says?",
            subtitle=f"Distilled student; {self.subtitle}",
        )
        coverage, _ = plot_risk_coverage(
            {TITLES[model]: p for model, p in self.predictions.probabilities.items()},
            labels,
            self.figures / "risk_coverage",
            unit=self.unit,
            subtitle=self.subtitle,
        )
        reasons = {f"{TITLES[model]}: {reason}" for model, part in told.items() for reason in part["not_fitted"]}
        people = "patients" if self.words.has_patients() else self.unit
        return [
            table(self.tables["calibration"]),
            *(
                text(f"A temperature could not be fitted in every fold. {reason}", quiet=True)
                for reason in sorted(reasons)
            ),
            text(
                f"Temperatures are fitted on each fold's validation {people} only and stored in the models' "
                "configuration; the logits are not changed by them. The calibration error has 15 bins of equal "
                "counts; a perfectly calibrated model would not measure 0 on so few pictures but the value in the "
                "column beside it.",
                quiet=True,
            ),
            figure(
                reliability,
                "Reliability diagram of the distilled student",
                "Points are bins of equal width; the ECE written in is that of 15 bins of equal counts.",
            ),
            figure(coverage, "Error rate among the pictures that are answered, by their share"),
        ]

    def _saliency(self) -> list[Block]:
        told = self.evaluation["saliency"]
        refused = [
            text(f"{TITLES[model]}: not measured. {why}", quiet=True)
            for model, why in self.evaluation["saliency_refused"].items()
        ]
        if told is None:
            return refused
        self.tables["saliency"] = saliency_table(told)
        titled = {TITLES[model]: part for model, part in told.items()}
        rates, _ = draw_saliency_rates(titled, self.figures / "saliency_rates", subtitle=self.subtitle)
        layers = "; ".join(f"{TITLES[model].lower()}: {part['layer']}" for model, part in told.items())
        return [
            text(
                "Grad-CAM of the true class against the tumour's mask. A hit is a map whose highest point lies in the "
                "mask, with and without a margin of 15 pixels of a 512-pixel slice; energy is the share of the map "
                "inside it. Chance is the mask's share of the head: what a point drawn at random in the head would hit."
            ),
            figure(rates, "Hit rates and energy inside the tumour, beside chance"),
            table(self.tables["saliency"]),
            text(
                "Maps are taken at the deepest stage with at least 6 × 6 positions, or the finest where none has: a "
                f"coarser map can hardly point. {layers}. Another stage or method gives other numbers; compare models "
                "within one run only.",
                quiet=True,
            ),
            *refused,
            *self._per_fold("saliency", "Overlays of saliency maps and tumour borders"),
        ]

    def _robustness(self) -> list[Block]:
        told = self.evaluation["robustness"]
        if told is None:
            return []
        from hf_kdmri.evaluation.robustness.accuracy import robustness_table
        from hf_kdmri.evaluation.robustness.figures import plot_robustness

        titled = {**told, "models": {TITLES[model]: part for model, part in told["models"].items()}}
        self.tables["robustness"] = robustness_table(titled)
        png, _ = plot_robustness(titled, self.figures / "robustness", subtitle=self.subtitle)
        return [
            text(
                f"Accuracy that is lost when {told['n']:,} test {self.unit} are corrupted as scanners, patients and "
                "files corrupt them."
            ),
            table(self.tables["robustness"]),
            figure(png, "Accuracy by severity of each corruption"),
        ]

    def _subsets(self) -> list[Block]:
        return [table(self.tables[name]) for name in ("subsets", "folds") if name in self.tables]

    def _made(self) -> list[Block]:
        versions = ", ".join(f"{name} {number}" for name, number in self.facts["versions"].items())
        options = yaml.safe_dump(config_of(self.folds[0].run), sort_keys=True, allow_unicode=True)
        return [
            code(str(self.facts["command"]), "Command", open=True),
            text(f"{versions}; {self.facts['machine']}."),
            code(options, f"All options{' of the first fold' if len(self.folds) > 1 else ''}"),
            text(
                "Beside this page: metrics.json (every number, explained in docs/evaluation.md), predictions.parquet "
                "(probabilities of every test picture), figures/ (PNG and SVG), tables/ (Markdown)."
            ),
        ]


def _key(name: str, estimate: Mapping[str, Any], *, signed: bool = False) -> KeyNumber:
    if estimate["value"] is None:
        return KeyNumber(name, "–")
    sign, unit = ("+", "") if signed else ("", " %")
    bounds = estimate["interval"]
    between = "" if bounds is None else " to ".join(f"{100 * bound:{sign}.1f}" for bound in bounds)
    value = f"{100 * estimate['value']:{sign}.1f}{unit}"
    return KeyNumber(name, value.replace("-", "−"), between.replace("-", "−"))
