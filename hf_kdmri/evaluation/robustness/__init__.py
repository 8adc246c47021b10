"""What corruptions of MRI cost a model."""

from hf_kdmri.evaluation.robustness.accuracy import evaluate_robustness, robustness_table
from hf_kdmri.evaluation.robustness.corruptions import corrupt

__all__ = [
    "corrupt",
    "evaluate_robustness",
    "robustness_table",
]
