"""Whether probabilities mean what they say: calibration error, temperature scaling, abstention."""

from hf_kdmri.evaluation.calibration.errors import (
    brier_score,
    calibration_error_floor,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)
from hf_kdmri.evaluation.calibration.selective import abstention_threshold, risk_coverage
from hf_kdmri.evaluation.calibration.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    log_probabilities,
)

__all__ = [
    "Temperature",
    "abstention_threshold",
    "apply_temperature",
    "brier_score",
    "calibration_error_floor",
    "classwise_calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "log_probabilities",
    "negative_log_likelihood",
    "reliability_curve",
    "risk_coverage",
]
