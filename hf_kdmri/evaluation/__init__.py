"""Metrics over slices and patients, speed and size, figures and the table at the end of a run."""

from hf_kdmri.evaluation.figures.run import plot_comparison, plot_prediction_grid, plot_training_curves
from hf_kdmri.evaluation.latency import count_flops, count_parameters, milliseconds_per_image
from hf_kdmri.evaluation.metrics import ClassificationReport, classification_metrics, patient_metrics
from hf_kdmri.evaluation.report import escape_markdown, print_results, results_table

__all__ = [
    "ClassificationReport",
    "classification_metrics",
    "count_flops",
    "count_parameters",
    "escape_markdown",
    "milliseconds_per_image",
    "patient_metrics",
    "plot_comparison",
    "plot_prediction_grid",
    "plot_training_curves",
    "print_results",
    "results_table",
]
