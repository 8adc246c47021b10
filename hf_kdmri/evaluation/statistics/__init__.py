"""Pooled test predictions: intervals over patient groups, paired tests, subsets, and what is said of them."""

from hf_kdmri.evaluation.statistics.compare import compare_runs, compare_table
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.summary import summarize
from hf_kdmri.evaluation.statistics.summary_tables import summary_tables

__all__ = [
    "Predictions",
    "compare_runs",
    "compare_table",
    "summarize",
    "summary_tables",
]
