"""Predictions that are kept beside the results give these results again, without any training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hf_kdmri.data.splits import PARTS_PER_FOLD, published_patients
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
KEPT = ROOT / "experiments" / "predictions"
PLANS = ROOT / "experiments" / "plans"
FOLDER = {"short_cvind": "short_cvind"} | dict.fromkeys(
    ["short_seeds", "short_self", "short_masks", "short_strong", "short_larger", "short_untrained"], "short_seeds"
)
every_plan = pytest.mark.parametrize("plan", FOLDER)
both_folders = pytest.mark.parametrize("folder", ["short_cvind", "short_seeds"])
both_splits = pytest.mark.parametrize("split", ["test", "validation"])


@pytest.fixture
def again(tmp_path: Path, experiment: Callable[..., ModuleType]) -> Callable[..., Any]:
    """What a script of experiments/ writes when it is given kept predictions."""

    def run(script: str, *arguments: object) -> Any:
        experiment(script, *arguments, "--json", tmp_path / "told.json")
        return json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))

    return run


def figures(name: str, split: str = "test") -> Any:
    """Those that are committed."""
    file = ROOT / "experiments" / (f"{name}.json" if split == "test" else f"{name}_{split}.json")
    return json.loads(file.read_text(encoding="utf-8"))


@both_folders
def test_every_slice_was_tested_once_by_models_of_its_fold(folder: str) -> None:
    slices_of_fold = dict.fromkeys(range(5), 0)
    for patient in published_patients().values():
        of_fold = patient.cvind - 1 if folder == "short_cvind" else patient.part // PARTS_PER_FOLD
        slices_of_fold[of_fold] += patient.slices
    said = {path.stem: np.load(path) for path in (KEPT / folder).glob("*.npz")}
    names = {re.sub(r"-f\d", "-f{}", name) for name, one in said.items() if "test slice" in one}
    assert len(names) >= 4
    for name in names:
        tested = {fold: said[name.format(fold)]["test slice"] for fold in range(5)}
        assert {fold: len(slices) for fold, slices in tested.items()} == slices_of_fold
        assert sorted(np.concatenate(list(tested.values()))) == list(range(1, 3065))


@every_plan
@both_splits
def test_they_give_the_figures_of_the_results(plan: str, split: str, again: Callable[..., Any]) -> None:
    kept = figures(plan, split)
    asked = ("--split", split, "--against", *kept["differences"])
    told = again("pool_runs", KEPT / FOLDER[plan], PLANS / f"{plan}.yaml", *asked)
    assert told["runs"] == kept["runs"]
    for name, row in kept["entries"].items():
        assert told["entries"][name]["accuracy"]["value"] == pytest.approx(row["accuracy"]["value"])
        assert told["entries"][name]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])
        assert told["entries"][name]["accuracy_by_fold"] == pytest.approx(row["accuracy_by_fold"])
    for pair, row in kept["differences"].items():
        assert told["differences"][pair]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])


def test_so_do_the_divided_groups(again: Callable[..., Any]) -> None:
    kept, told = figures("divided_groups"), again("divided_groups", KEPT / "short_cvind", PLANS / "short_cvind.yaml")
    assert told.keys() == kept.keys()
    for name, row in kept.items():
        assert told[name]["divided"]["patient_groups"] == row["divided"]["patient_groups"] == 15
        assert told[name]["difference"]["interval"] == pytest.approx(row["difference"]["interval"])


@pytest.mark.parametrize("plan", ["short_search", "short_candidates"])
def test_so_do_the_searches(plan: str, again: Callable[..., Any]) -> None:
    kept = figures(plan)
    asked = ("--folds", 0, 1, "--against", *kept["differences"])
    told = again("pool_runs", KEPT / "short_seeds", PLANS / f"{plan}.yaml", *asked)
    for pair, row in kept["differences"].items():
        assert told["differences"][pair]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])


def test_what_is_shipped_was_chosen_on_validation_slices_by_the_plans_rule(again: Callable[..., Any]) -> None:
    names = ("balanced", "corrupted", "cropped", "cropped, other look")
    before, alone, taught = ([row[name] for name in names] for row in figures("release_scores"))

    def is_better(one: list[float], other: list[float]) -> bool:
        return np.mean(one) >= np.mean(other) + 0.01 and all(np.subtract(one, other) >= -0.01)

    assert is_better(alone, before) and not is_better(taught, before)
    kept = figures("release", "validation")
    asked = ("--folds", 0, "--against", *kept["differences"])
    told = again("pool_runs", KEPT / "release", PLANS / "release.yaml", *asked)
    for pair, row in kept["differences"].items():
        assert told["differences"][pair]["accuracy"]["interval"] == pytest.approx(row["accuracy"]["interval"])


def test_one_seed_can_be_asked_for(again: Callable[..., Any]) -> None:
    kept = figures("short_seeds")["entries"]
    told = again("pool_runs", KEPT / "short_seeds", PLANS / "short_seeds.yaml", "--split", "test", "--seeds", 44)
    assert {name: row["seeds"] for name, row in told["entries"].items()} == {"teacher": 1, "alone": 1, "hinton": 1}
    for name in ("alone", "hinton"):
        each = kept[name]["accuracy_over_seeds"]["each"]
        assert told["entries"][name]["accuracy"]["value"] == pytest.approx(each[1]) != pytest.approx(each[0])


def test_seed_is_compared_with_seed(again: Callable[..., Any]) -> None:
    def p_by_seed(*asked: object) -> list[float]:
        folder, plan = KEPT / "short_seeds", PLANS / "short_strong.yaml"  # where one entry names seed 44 first
        told = again("pool_runs", folder, plan, "--split", "test", "--against", "taught:alone", *asked)
        return told["differences"]["taught:alone"]["permutation_p"]

    assert p_by_seed() == pytest.approx([p for seed in (43, 44) for p in p_by_seed("--seeds", seed)])


@both_folders
@both_splits
def test_so_do_answers_with_a_mirror_image(folder: str, split: str, again: Callable[..., Any]) -> None:
    name = folder.replace("short", "flips")
    kept = figures(name, split)["entries"]
    told = again("flips", KEPT / folder, PLANS / f"{folder}.yaml", "--out", KEPT / name, "--split", split)["entries"]
    assert told.keys() == kept.keys()
    for entry, row in kept.items():
        for which in ("mirrored", "difference"):
            for figure in ("value", "interval"):
                assert told[entry][which]["accuracy"][figure] == pytest.approx(row[which]["accuracy"][figure])
