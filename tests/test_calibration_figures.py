from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from hf_kdmri.evaluation.calibration.errors import expected_calibration_error, reliability_curve
from hf_kdmri.evaluation.calibration.figures import plot_reliability, plot_risk_coverage
from hf_kdmri.evaluation.calibration.selective import risk_coverage
from tests.test_calibration import calibrated
from tests.test_figures import check_files


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are too sure, the same after the right temperature, and labels."""
    logits, labels = calibrated(300, temperature=2.0)
    return softmax(logits, axis=1), softmax(logits / 2, axis=1), labels


def test_reliability_states_both_panels_the_errors_and_the_counts(scores, tmp_path) -> None:
    sure, honest, labels = scores
    out = tmp_path / "new" / "reliability"
    panels = {"Before": sure, "After, T = 2.00": honest}
    text = check_files(plot_reliability(panels, labels, out, subtitle="test slices, n = 300"), out)
    for name, p in panels.items():
        assert name in text
        assert f"ECE {100 * expected_calibration_error(p, labels):.1f} %" in text
        assert f"mean confidence {100 * p.max(axis=1).mean():.1f} %" in text
        for count in reliability_curve(p, labels, bins=10, adaptive=False).count:
            assert f" {count} " in f" {text} "
    for expected in ("test slices, n = 300", "accuracy [%]", "confidence [%]", "ECE by chance", "slices"):
        assert expected in text


@pytest.mark.parametrize("probabilities", [np.eye(2)[[0, 1, 0]], np.full((3, 2), 0.5), [[0.9, 0.1]] * 3])
def test_one_bin_is_enough(probabilities, tmp_path) -> None:
    plot_reliability({"<b>$x$": probabilities}, [0, 1, 1], tmp_path / "r", adaptive=True, unit="patients")
    assert "&lt;b&gt;$x$" in (tmp_path / "r.svg").read_text()


def test_risk_coverage_states_the_accuracy_at_the_marks(scores, tmp_path) -> None:
    sure, _, labels = scores
    noise = softmax(np.log(sure) + np.random.default_rng(0).normal(size=sure.shape), axis=1)
    models = {"Teacher": sure, "Student alone": noise, "levit_128s": sure[:, [1, 0, 2]]}
    out = tmp_path / "risk"
    text = check_files(plot_risk_coverage(models, labels, out, unit="patients", subtitle="fold 0, n = 300"), out)
    for name, p in models.items():
        curve = risk_coverage(p, labels)
        at = [f"{100 * curve.accuracy_at(coverage):.1f} % at {100 * coverage:.0f} %" for coverage in (1, 0.9, 0.8)]
        assert f"{name}: {', '.join(at)}" in text
    assert "coverage: patients that get an answer [%]" in text
    assert "fold 0, n = 300" in text


def test_seven_models_look_different(scores, tmp_path) -> None:
    names = ["Teacher", "Distilled student", *"abcde"]
    _, svg = plot_risk_coverage(dict.fromkeys(names, scores[0]), scores[2], tmp_path / "r", marks=())
    styles = set()
    for name in names:
        group = svg.read_text().split(f'id="curve-{name}"')[1].split("</g>")[0]
        styles.add(group.split('style="')[1].split('"')[0])
    assert len(styles) == 7


def test_figures_are_reproducible(scores, tmp_path) -> None:
    for plot in (plot_reliability, plot_risk_coverage):
        first, second = (plot({"a": scores[0]}, scores[2], Path(tmp_path / name))[1].read_bytes() for name in "ab")
        assert first == second


def test_bad_input_is_refused_by_name(scores, tmp_path) -> None:
    with pytest.raises(ValueError, match="no scores to draw"):
        plot_reliability({}, scores[2], tmp_path / "r")
    with pytest.raises(ValueError, match="0 models; expected 1 to 7"):
        plot_risk_coverage({}, scores[2], tmp_path / "r")
    with pytest.raises(ValueError, match="8 models"):
        plot_risk_coverage(dict.fromkeys("abcdefgh", scores[0]), scores[2], tmp_path / "r")
    with pytest.raises(ValueError, match="labels have shape"):
        plot_risk_coverage({"a": scores[0]}, scores[2][:5], tmp_path / "r")
    with pytest.raises(ValueError, match="coverage is 80"):
        plot_risk_coverage({"a": scores[0]}, scores[2], tmp_path / "r", marks=[80])
    assert not list(tmp_path.iterdir())
