"""The tables of a report: every number stands in its row, and what was not measured is a dash."""

from __future__ import annotations

from typing import Any

import pytest

from hf_kdmri.evaluation.run_tables import calibration_table, convergence_table, cost_table, saliency_table

ROW = {"model": "Teacher", "architecture": "resnet50", "accuracy": 0.925, "parameters": 3_370_000}
ROW |= {"image_size": 224, "ms_per_image": 12.34}


def cells(table: str) -> list[list[str]]:
    """Body rows of a Markdown table, each as long as its heading."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    return lines[2:]


def estimate(value: float, interval: tuple[float, float] | None = None) -> dict:
    return {"value": value, "interval": interval}


def test_cost_with_and_without_what_was_not_counted() -> None:
    counted = {**ROW, "model": "Student", "flops": 1.5e9, "megabytes": 9.87}
    teacher, student = cells(cost_table({"teacher": ROW, "student": counted}))
    assert teacher == ["Teacher", "resnet50", "92.5 %", "3.37 M", "–", "–", "224 px", "12.3"]
    assert student[4:6] == ["1.50", "9.9"]


def convergence(best: float, last: float | None, trend: float | None, **more) -> dict:
    return {"best_validation_accuracy": best, "gap": {"last": last, "trend": trend}, **more}


def test_convergence_of_every_fold_and_model() -> None:
    told = {
        "0": {
            "baseline": convergence(0.8, 0.123, -0.0015),
            "student": convergence(0.9, -0.05, 0.0, to_baseline_best={"epoch": 3.0, "seconds": 150.0}),
        },
        "1": {"student": convergence(0.7, None, None, to_baseline_best={"epoch": None, "seconds": None})},
        "2": {},
    }
    first, second, third = cells(convergence_table(told))
    assert first == ["0", "Student alone", "80.0 %", "+12.3", "−0.15", "–"]
    assert second[0] == "" and second[3:] == ["−5.0", "+0.00", "3 (2.5 min)"]
    assert third == ["1", "Distilled student", "70.0 %", "–", "–", "never"]
    told["1"]["student"]["to_baseline_best"] = {"epoch": 2.5, "seconds": None}
    assert cells(convergence_table(told))[2][-1] == "2.5"
    assert convergence_table({"0": {}, "1": {}}) == ""


def calibration(ece: float) -> dict:
    return {
        "ece": ece,
        "ece_of_a_calibrated_model": 0.02,
        "brier": 0.1,
        "negative_log_likelihood": 0.3,
        "accuracy_at_coverage": {"0.8": 0.95, "0.9": 0.93},
    }


def test_calibration_before_and_after() -> None:
    told: dict[str, dict[str, Any]] = {
        "student": {"temperatures": {"0": 1.5, "1": None}, "before": calibration(0.1), "after": calibration(0.05)},
        "teacher": {"temperatures": {"0": None}, "before": calibration(0.2), "after": None},
    }
    table = calibration_table(told)
    assert "Accuracy at 80 % coverage" in table and "Accuracy at 90 % coverage" in table
    before, after, teacher = cells(table)
    assert before == ["Distilled student", "as trained", "0.100", "0.020", "0.100", "0.300", "95.0 %", "93.0 %"]
    assert after[:3] == ["", "temperature 1.50", "0.050"]
    assert teacher[:2] == ["Teacher", "as trained"]


@pytest.mark.parametrize("interval", [None, (0.3, 0.7)])
def test_saliency_beside_chance(interval) -> None:
    scores = {name: estimate(0.5, interval) for name in ("hit", "tolerant_hit", "energy")}
    scores |= {name: estimate(0.25) for name in ("chance", "tolerant_chance")}
    rows = cells(saliency_table({"student": {"classes": {"glioma": {"n": 1234, **scores}, "all": {"n": 5, **scores}}}}))
    assert [row[:3] for row in rows] == [["Distilled student", "glioma", "1,234"], ["", "all", "5"]]
    assert all("25.0" in row[4] and row[4] == row[6] for row in rows)
    assert all(("(" in row[3]) == (interval is not None) for row in rows)
