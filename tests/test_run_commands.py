"""`kdmri compare` on files, and what it refuses; `kdmri report` is tested on a finished run in test_train_kd."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.evaluation.statistics.predictions import Predictions


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """A run folder and a file of predictions, of the same forty slices of ten patients."""
    n = 40
    labels = np.arange(n) // 4 % 2
    paths = [tmp_path / "first" / "predictions.parquet", tmp_path / "second.csv"]
    (tmp_path / "first").mkdir()
    for path, rate in zip(paths, (0.6, 0.9), strict=True):
        right = np.random.default_rng(int(10 * rate)).random(n) < rate
        p = np.where((labels == 1) == right, 0.7, 0.3)
        Predictions(
            slices=np.arange(n), pids=(np.arange(n) // 4).astype(str), patient_groups=(np.arange(n) // 4).astype(str),
            folds=np.zeros(n, int), labels=labels, class_names=("meningioma", "glioma"),
            probabilities={"student": np.column_stack([1 - p, p])},
        ).write(path)  # fmt: skip
    return [str(tmp_path / "first"), str(paths[1])]


def test_compare_prints_a_table_or_json(runs: list[str]):
    shown = CliRunner().invoke(app, ["compare", *runs])
    assert shown.exit_code == 0, shown.output
    assert "40 test images of 10 patient groups" in shown.output and shown.output.count("\n| ") == 3
    told = json.loads(CliRunner().invoke(app, ["compare", *runs, "--format", "json"]).stdout)
    assert list(told["runs"]) == runs and list(told["against"]) == runs[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "first"], "give two or more"),
        (["compare", "first", "nowhere"], "there is no"),
        (["compare", "first", "second", "--model", "teacher"], "has no predictions of the teacher; it has student"),
        (["report", "nowhere"], "holds no finished run"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(runs: list[str], arguments: list[str], message: str):
    named = dict(zip(("first", "second"), runs, strict=True))
    shown = CliRunner().invoke(app, [named.get(argument, argument) for argument in arguments])
    assert shown.exit_code == 2
    assert message in shown.stderr and len(shown.stderr.strip().splitlines()) == 1
