"""Predictions that are kept beside the results give these results again, without any training."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_kdmri.data.splits import published_patients
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
KEPT = ROOT / "experiments" / "predictions" / "short_cvind"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")


def test_every_slice_was_tested_once_by_models_of_its_fold() -> None:
    slices_of_fold = dict.fromkeys(range(5), 0)
    for patient in published_patients().values():
        slices_of_fold[patient.cvind - 1] += patient.slices
    for entry in sorted({path.stem.split("-")[0] for path in KEPT.glob("*.npz")}):
        tested = {fold: np.load(next(KEPT.glob(f"{entry}-f{fold}*.npz")))["test slice"] for fold in range(5)}
        assert {fold: len(slices) for fold, slices in tested.items()} == slices_of_fold
        assert sorted(np.concatenate(list(tested.values()))) == list(range(1, 3065))


@pytest.mark.parametrize(("split", "file"), [("test", "short_cvind"), ("validation", "short_cvind_validation")])
def test_they_give_the_figures_of_the_results(
    split: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = json.loads((ROOT / "experiments" / f"{file}.json").read_text(encoding="utf-8"))
    plan, out = ROOT / "experiments" / "plans" / "short_cvind.yaml", tmp_path / "pooled.json"
    monkeypatch.setattr(
        sys,
        "argv",
        ["pool_runs.py", str(KEPT), str(plan), "--split", split, "--against", *kept["differences"], "--json", str(out)],
    )
    importlib.import_module("pool_runs").main()
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["runs"] == kept["runs"]
    for name, row in kept["entries"].items():
        assert told["entries"][name]["accuracy"]["value"] == pytest.approx(row["accuracy"]["value"])
        assert told["entries"][name]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])
        assert told["entries"][name]["accuracy_by_fold"] == pytest.approx(row["accuracy_by_fold"])
    for pair, row in kept["differences"].items():
        assert told["differences"][pair]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])


def test_so_do_the_divided_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads((ROOT / "experiments" / "divided_groups.json").read_text(encoding="utf-8"))
    plan, out = ROOT / "experiments" / "plans" / "short_cvind.yaml", tmp_path / "divided.json"
    monkeypatch.setattr(sys, "argv", ["divided_groups.py", str(KEPT), str(plan), "--json", str(out)])
    importlib.import_module("divided_groups").main()
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told.keys() == kept.keys()
    for name, row in kept.items():
        assert told[name]["divided"]["patient_groups"] == row["divided"]["patient_groups"] == 15
        assert told[name]["difference"]["interval"] == pytest.approx(row["difference"]["interval"])
