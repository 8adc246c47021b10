from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hf_kdmri.evaluation.metrics import classification_metrics, patient_metrics
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.subsets import SUBSETS
from hf_kdmri.evaluation.statistics.summary import summarize
from hf_kdmri.evaluation.statistics.summary_tables import summary_tables
from tests.conftest import ROOT

NAMES = ("meningioma", "glioma", "pituitary")
MODELS = ("teacher", "baseline", "student")


def study(groups: int = 90, models: tuple[str, ...] = MODELS, seed: int = 0) -> Predictions:
    """Some 900 slices of patients that are alike within; the student is better than the baseline."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(groups), rng.integers(1, 21, groups))
    labels = index % 3
    shared, probabilities = rng.normal(size=(groups, 3)), {}
    for model in models:
        strength = {"teacher": 2.5, "baseline": 1.0, "student": 2.5}[model]
        logits = strength * np.eye(3)[labels] + shared[index] + 0.7 * rng.normal(size=(groups, 3))[index]
        probabilities[model] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.array([f"{'MR' if g % 3 == 1 and g % 2 else ''}{1000 + g}" for g in range(groups)])[index]
    return Predictions(
        slices=np.arange(len(index)),
        pids=ids,
        patient_groups=ids,
        folds=index % 5,
        labels=labels,
        class_names=NAMES,
        probabilities=probabilities,
        attributes={
            "plane": np.array(["axial", "coronal", "sagittal"])[rng.integers(0, 3, len(index))],
            "height": np.where(index < 3, 256, 512),
            "lesion_area": rng.random(len(index)) / 10,
        },
    )


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarize(study(), draws=300, permutations=300)


def test_values_are_those_of_the_metrics(summary) -> None:
    whole = study()
    for model in MODELS:
        for unit, expected in {
            "over_slices": classification_metrics(whole.probabilities[model], whole.labels, NAMES),
            "over_patients": patient_metrics(whole.probabilities[model], whole.labels, whole.patient_groups, NAMES),
        }.items():
            found = summary[unit]["models"][model]
            assert summary[unit]["n"] == expected.pop("n")
            for name, value in expected.items():
                if name == "confusion_matrix":
                    assert found[name] == value
                elif name.endswith("_per_class"):
                    assert {key: one["value"] for key, one in found[name].items()} == pytest.approx(value), name
                else:
                    assert found[name]["value"] == pytest.approx(value), name
    assert summary["over_patients"]["n"] == summary["patient_groups"] == 90
    assert sum(fold["slices"] for fold in summary["folds"].values()) == summary["slices"] == len(whole)


def test_intervals_hold_the_value_and_paired_ones_are_narrower(summary) -> None:
    models = summary["over_slices"]["models"]
    for scores in models.values():
        low, high = scores["accuracy"]["interval"]
        assert low < scores["accuracy"]["value"] < high
    difference = summary["over_slices"]["comparisons"]["student_minus_baseline"]["differences"]["accuracy"]
    student, baseline = models["student"]["accuracy"], models["baseline"]["accuracy"]
    assert difference["value"] == pytest.approx(student["value"] - baseline["value"])
    unpaired = np.hypot(*(np.ptp(one["interval"]) for one in (student, baseline)))
    assert np.ptp(difference["interval"]) < unpaired


def test_a_better_student_is_found_and_an_equal_one_is_not(summary) -> None:
    for unit in ("over_slices", "over_patients"):
        comparisons = summary[unit]["comparisons"]
        assert comparisons["student_minus_baseline"]["permutation_p"]["accuracy"] < 0.01
        assert comparisons["student_minus_teacher"]["permutation_p"]["accuracy"] > 0.05
    table = summary["over_patients"]["comparisons"]["student_minus_baseline"]["mcnemar"]
    assert table["p"] < 0.01
    assert sum(count for key, count in table.items() if key != "p") == 90


def test_it_is_json_and_the_same_seed_gives_the_same(summary) -> None:
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summarize(study(), draws=300, permutations=300) == summary


def test_order_of_rows_does_not_matter(summary) -> None:
    whole = study()
    shuffled = whole.select(np.random.default_rng(1).permutation(len(whole)))
    other = summarize(shuffled, draws=300, permutations=300)
    for (path, one), (other_path, two) in zip(_leaves(summary), _leaves(other), strict=True):
        assert path == other_path
        assert one == (pytest.approx(two) if isinstance(one, float) or path.endswith("interval") else two), path


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give every field with the names of models, classes, folds, subsets and pairs replaced by what they are."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        for names, what in ((NAMES, "<class>"), (MODELS, "<model>"), (SUBSETS, "<subset>")):
            key = what if key in names else key
        key = "<pair>" if "_minus_" in key else "<fold>" if key.isdigit() else key
        yield from _leaves(inner, f"{path}.{key}" if path else key)


def test_the_document_names_every_field_and_no_other(summary) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    section = text[text.index("## The summary, field by field") : text.index("## The metrics")]
    documented = {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(.+?)`", row)}
    metrics = text[text.index("## The metrics") : text.index("## The intervals")]
    scalars = re.findall(r"^\| `(\w+)`", metrics, re.M)
    estimates = {name if not name.endswith("_per_class") else f"{name}.<class>" for name in scalars}
    expanded = {full for path in documented for full in _expand(path, estimates)}
    assert expanded == {path for path, _ in _leaves(summary)}


def _expand(path: str, estimates: set[str]) -> Iterator[str]:
    if path.endswith("<metric>"):
        for name in estimates:
            yield from (path.replace("<metric>", f"{name}.{part}") for part in ("value", "interval"))
    elif path.endswith("<estimate>"):
        yield from (path.replace("<estimate>", part) for part in ("value", "interval"))
    else:
        yield path


def test_some_models_and_leaking_folds() -> None:
    one = summarize(study(models=("student",)), draws=20, permutations=20)
    assert one["over_slices"]["comparisons"] == {}
    tables = summary_tables(one)
    assert tables["comparisons"] == ""
    two = summarize(study(models=("teacher", "student")), draws=20, permutations=20)
    assert list(two["over_patients"]["comparisons"]) == ["student_minus_teacher"]
    with pytest.raises(ValueError, match="0 draws"):
        summarize(study(), draws=0)
    with pytest.raises(ValueError, match="0 permutations"):
        summarize(study(), draws=5, permutations=0)


def test_a_single_fold_has_no_spread() -> None:
    whole = study()
    one = summarize(whole.select(whole.folds == 0), draws=20, permutations=20)
    assert one["spread_over_folds"]["student"]["accuracy"]["standard_deviation"] is None
    assert "±" not in summary_tables(one)["folds"]


def test_tables_show_the_numbers(summary) -> None:
    tables = summary_tables(json.loads(json.dumps(summary)))
    student = summary["over_slices"]["models"]["student"]
    low, high = student["accuracy"]["interval"]
    shown = f"{100 * student['accuracy']['value']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    assert shown in tables["headline"]
    assert len(tables["headline"].splitlines()) == 2 + 3
    assert len(tables["per_class"].splitlines()) == 2 + 9
    assert len(tables["comparisons"].splitlines()) == 2 + 12
    assert len(tables["folds"].splitlines()) == 2 + 5 + 1
    assert len(tables["subsets"].splitlines()) == 2 + len(SUBSETS)
    assert "Distilled student − student alone" in tables["comparisons"]
    assert "0.003" in tables["comparisons"]  # (0 + 1) / (300 + 1)
    for table in tables.values():
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
