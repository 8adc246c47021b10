"""Metrics over slices and patients, speed and size, figures and the table at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_kdmri.lazy_names import lazy_names

if TYPE_CHECKING:  # so that a type checker knows what the names below are
    from hf_kdmri.evaluation.figures.run import plot_comparison as plot_comparison
    from hf_kdmri.evaluation.figures.run import plot_prediction_grid as plot_prediction_grid
    from hf_kdmri.evaluation.figures.run import plot_training_curves as plot_training_curves
    from hf_kdmri.evaluation.latency import count_flops as count_flops
    from hf_kdmri.evaluation.latency import count_parameters as count_parameters
    from hf_kdmri.evaluation.latency import milliseconds_per_image as milliseconds_per_image
    from hf_kdmri.evaluation.metrics import ClassificationReport as ClassificationReport
    from hf_kdmri.evaluation.metrics import classification_metrics as classification_metrics
    from hf_kdmri.evaluation.metrics import patient_metrics as patient_metrics
    from hf_kdmri.evaluation.report import escape_markdown as escape_markdown
    from hf_kdmri.evaluation.report import print_results as print_results
    from hf_kdmri.evaluation.report import results_table as results_table

_HOME = {
    "ClassificationReport": "metrics",
    "classification_metrics": "metrics",
    "count_flops": "latency",
    "count_parameters": "latency",
    "escape_markdown": "report",
    "milliseconds_per_image": "latency",
    "patient_metrics": "metrics",
    "plot_comparison": "figures.run",
    "plot_prediction_grid": "figures.run",
    "plot_training_curves": "figures.run",
    "print_results": "report",
    "results_table": "report",
}
__all__ = list(_HOME)
__getattr__ = lazy_names(__name__, _HOME)  # so that a card or a table does not pay for torch and matplotlib
