"""Figures of a run, as PNG and SVG."""

from hf_kdmri.evaluation.figures.confusion import plot_confusion_matrices
from hf_kdmri.evaluation.figures.convergence import plot_convergence
from hf_kdmri.evaluation.figures.run import plot_comparison, plot_prediction_grid, plot_training_curves

__all__ = [
    "plot_comparison",
    "plot_confusion_matrices",
    "plot_convergence",
    "plot_prediction_grid",
    "plot_training_curves",
]
