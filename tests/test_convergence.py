"""The gap between training and validation, and the time to an accuracy, from a history."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hf_kdmri.evaluation.convergence import convergence, generalisation_gap, time_to_accuracy
from hf_kdmri.evaluation.figures.convergence import plot_convergence


def history(stage: str, train: list[float], validation: list[float]) -> list[dict]:
    """As the trainer logs: a row of training and one of validation for each epoch, 10 s each."""
    rows: list[dict] = []
    for epoch, (seen, unseen) in enumerate(zip(train, validation, strict=True), start=1):
        rows.append({"stage": stage, "epoch": float(epoch), "train_accuracy": seen, "seconds": 10.0 * epoch - 1})
        rows.append({"stage": stage, "epoch": float(epoch), "eval_accuracy": unseen, "seconds": 10.0 * epoch})
    return rows


BASELINE = history("baseline", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.5, 0.6, 0.65, 0.7, 0.7, 0.69])
STUDENT = history("student", [0.6, 0.7, 0.8, 0.8, 0.8, 0.8], [0.6, 0.72, 0.8, 0.8, 0.8, 0.8])


def test_the_gap_and_its_trend_by_hand():
    gap = generalisation_gap(BASELINE, "baseline")
    assert gap["gap"] == pytest.approx([0, 0, 0.05, 0.1, 0.2, 0.31])
    assert gap["last"] == pytest.approx(0.31)
    assert gap["trend"] == pytest.approx((0.31 - 0.1) / 2)  # of the last three, equally spaced: ends alone decide
    assert generalisation_gap(STUDENT, "student")["trend"] == pytest.approx(0, abs=1e-12)
    assert generalisation_gap(BASELINE, "teacher") == {"epochs": [], "gap": [], "last": None, "trend": None}


def test_the_first_epoch_that_reaches_an_accuracy_counts():
    reached = time_to_accuracy(BASELINE, "baseline", [0.7, 0.71])
    assert reached == [
        {"accuracy": 0.7, "epoch": 4.0, "seconds": 40.0},
        {"accuracy": 0.71, "epoch": None, "seconds": None},
    ]
    without_clock = [{key: value for key, value in row.items() if key != "seconds"} for row in BASELINE]
    assert time_to_accuracy(without_clock, "baseline", [0.6])[0] == {"accuracy": 0.6, "epoch": 2.0, "seconds": None}


def test_the_students_are_compared_at_the_baselines_best():
    told = convergence(BASELINE + STUDENT, [0.6])
    assert list(told) == ["baseline", "student"]
    assert told["baseline"]["to_baseline_best"] == {"accuracy": 0.7, "epoch": 4.0, "seconds": 40.0}
    assert told["student"]["to_baseline_best"] == {"accuracy": 0.7, "epoch": 2.0, "seconds": 20.0}
    assert "to_baseline_best" not in convergence(STUDENT)["student"]


def test_the_figure_is_drawn_and_an_empty_history_is_refused(tmp_path: Path):
    png, svg = plot_convergence(convergence(BASELINE + STUDENT), tmp_path / "convergence", subtitle="a test")
    assert Image.open(png).width > 1000
    text = svg.read_text()
    assert "not reached" in text and "Student alone, trend +10.50 points per epoch" in text
    with pytest.raises(ValueError, match="no stage with a validation"):
        plot_convergence({}, tmp_path / "none")
