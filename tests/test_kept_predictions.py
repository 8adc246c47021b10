"""Predictions that are kept beside the results give these results again, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hf_kdmri.data.splits import published_patients
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
KEPT = ROOT / "experiments" / "predictions" / "short_cvind"
PLAN = ROOT / "experiments" / "plans" / "short_cvind.yaml"


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
    split: str, file: str, tmp_path: Path, experiment: Callable[..., ModuleType]
) -> None:
    kept = json.loads((ROOT / "experiments" / f"{file}.json").read_text(encoding="utf-8"))
    out = tmp_path / "pooled.json"
    experiment("pool_runs", KEPT, PLAN, "--split", split, "--against", *kept["differences"], "--json", out)
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["runs"] == kept["runs"]
    for name, row in kept["entries"].items():
        assert told["entries"][name]["accuracy"]["value"] == pytest.approx(row["accuracy"]["value"])
        assert told["entries"][name]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])
        assert told["entries"][name]["accuracy_by_fold"] == pytest.approx(row["accuracy_by_fold"])
    for pair, row in kept["differences"].items():
        assert told["differences"][pair]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])


def test_so_do_the_divided_groups(tmp_path: Path, experiment: Callable[..., ModuleType]) -> None:
    kept = json.loads((ROOT / "experiments" / "divided_groups.json").read_text(encoding="utf-8"))
    out = tmp_path / "divided.json"
    experiment("divided_groups", KEPT, PLAN, "--json", out)
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told.keys() == kept.keys()
    for name, row in kept.items():
        assert told[name]["divided"]["patient_groups"] == row["divided"]["patient_groups"] == 15
        assert told[name]["difference"]["interval"] == pytest.approx(row["difference"]["interval"])


@pytest.mark.parametrize(("split", "file"), [("test", "flips_cvind"), ("validation", "flips_cvind_validation")])
def test_so_do_answers_with_a_mirror_image(
    split: str, file: str, tmp_path: Path, experiment: Callable[..., ModuleType]
) -> None:
    kept = json.loads((ROOT / "experiments" / f"{file}.json").read_text(encoding="utf-8"))["entries"]
    out = tmp_path / "flips.json"
    experiment("flips", KEPT, PLAN, "--out", KEPT.with_name("flips_cvind"), "--split", split, "--json", out)
    told = json.loads(out.read_text(encoding="utf-8"))["entries"]
    assert told.keys() == kept.keys()
    for name, row in kept.items():
        assert told[name]["mirrored"]["accuracy"]["value"] == pytest.approx(row["mirrored"]["accuracy"]["value"])
        assert told[name]["difference"]["accuracy"]["interval"] == pytest.approx(
            row["difference"]["accuracy"]["interval"]
        )
