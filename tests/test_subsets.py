from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.subsets import SUBSETS, subset_masks, subset_results

NAMES = ("meningioma", "glioma", "pituitary")


def predictions(groups: int = 90, **changes: Any) -> Predictions:
    """Three slices of each group; gliomas are right only where the id begins with MR: a shortcut."""
    index = np.repeat(np.arange(groups), 3)
    labels = index % 3
    ids = np.array([f"{'MR' if g % 3 == 1 and g % 2 else ''}{1000 + g}" for g in range(groups)])[index]
    found = np.where((labels == 1) & (np.char.find(ids, "MR") < 0), 0, labels)
    rng = np.random.default_rng(0)
    found = np.where(rng.random(len(found)) < 0.05, (found + 1) % 3, found)
    return Predictions(
        slices=np.arange(len(index)),
        pids=ids,
        patient_groups=ids,
        folds=index % 5,
        labels=labels,
        class_names=changes.pop("class_names", NAMES),
        probabilities={"student": np.eye(3)[found], "teacher": np.eye(3)[labels]},
        attributes=changes.pop(
            "attributes",
            {
                "plane": np.array(["axial", "coronal", "axial"] * groups),
                "height": np.where(index == 0, 256, 512),
                "lesion_area": np.where(np.arange(len(index)) % 7 == 0, np.nan, np.arange(len(index)) / 1000),
            },
        ),
    )


def test_masks_by_hand() -> None:
    whole = predictions()
    masks = {name: mask for name, mask in subset_masks(whole).items() if mask is not None}
    assert list(masks) == list(SUBSETS)
    glioma = whole.labels == 1
    assert (masks["glioma_mr_pid"] | masks["glioma_numeric_pid"]).tolist() == glioma.tolist()
    assert not (masks["glioma_mr_pid"] & masks["glioma_numeric_pid"]).any()
    assert masks["height_256"].sum() == 3
    assert masks["plane_axial"].sum() == 180
    known = ~np.isnan(whole.attributes["lesion_area"])
    assert (masks["lesion_below_median"] | masks["lesion_from_median"]).tolist() == known.tolist()
    assert abs(masks["lesion_below_median"].sum() - masks["lesion_from_median"].sum()) <= 1


def test_a_shortcut_shows() -> None:
    results = {name: r for name, r in subset_results(predictions(), draws=200).items() if r is not None}
    by_scanner = [results[name]["models"]["student"]["accuracy"] for name in ("glioma_mr_pid", "glioma_numeric_pid")]
    assert by_scanner[0]["value"] > 0.9 > 0.1 > by_scanner[1]["value"]
    numeric = results["glioma_numeric_pid"]
    assert (numeric["slices"], numeric["patient_groups"]) == (45, 15)
    assert numeric["models"]["student"]["accuracy"]["interval"] is None  # 15 patients are too few
    assert numeric["models"]["student"]["recall_per_class"]["glioma"] == by_scanner[1]
    assert numeric["models"]["student"]["recall_per_class"]["pituitary"] == {"value": None, "interval": None}
    low, high = results["plane_axial"]["models"]["student"]["accuracy"]["interval"]
    assert low < results["plane_axial"]["models"]["student"]["accuracy"]["value"] < high
    assert results["plane_axial"]["models"]["teacher"]["accuracy"] == {"value": 1.0, "interval": None}


def test_empty_subsets_are_none() -> None:
    results = subset_results(predictions(attributes={}), draws=10)
    assert [name for name, result in results.items() if result is not None] == ["glioma_numeric_pid", "glioma_mr_pid"]
    results = subset_results(predictions(class_names=("a", "b", "c")), draws=10)
    assert results["glioma_mr_pid"] is None
    assert results["plane_sagittal"] is None
    assert results["plane_axial"] is not None
    unknown = {"lesion_area": np.full(270, np.nan)}
    assert subset_results(predictions(attributes=unknown), draws=10)["lesion_from_median"] is None


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_does_not_matter(seed) -> None:
    whole = predictions()
    shuffled = whole.select(np.random.default_rng(seed).permutation(len(whole)))
    one, other = subset_results(whole, draws=50), subset_results(shuffled, draws=50)
    assert one.keys() == other.keys()
    for name, result in one.items():
        theirs = other[name]
        if result is None or theirs is None:
            assert result is theirs
            continue
        assert result["models"]["student"]["accuracy"]["interval"] == pytest.approx(
            theirs["models"]["student"]["accuracy"]["interval"]
        )
