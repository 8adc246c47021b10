"""Named parts of the test slices in which a shortcut would show.

Ids that begin with MR occur only in glioma, perhaps from another scanner: a model that learnt the scanner is good at
these gliomas and bad at the others. A model that learnt the plane, the size of the published image or the size of the
tumour differs likewise between the parts below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdmri.evaluation.statistics.bootstrap import confusion_metrics, draw_counts, estimate, group_confusions
from hf_kdmri.evaluation.statistics.predictions import Predictions

SUBSETS = {
    "glioma_numeric_pid": "gliomas whose id has no letters in front",
    "glioma_mr_pid": "gliomas whose id begins with MR",
    "plane_axial": "axial slices",
    "plane_coronal": "coronal slices",
    "plane_sagittal": "sagittal slices",
    "height_256": "slices published with 256 × 256 pixels",
    "lesion_below_median": "tumours smaller than the median of all",
    "lesion_from_median": "tumours of the median area or larger",
}


def subset_masks(predictions: Predictions) -> dict[str, NDArray[np.bool_] | None]:
    """Say which slices belong to each of `SUBSETS`.

    Args:
        predictions: with the attributes `plane`, `height` and `lesion_area` where known.

    Returns:
        Name to (N,), or None where the attribute or a class named glioma is missing. The median area is that of the
        slices whose area is known; the others belong to neither half.
    """
    masks: dict[str, NDArray[np.bool_] | None] = dict.fromkeys(SUBSETS)
    if "glioma" in predictions.class_names:
        glioma = predictions.labels == predictions.class_names.index("glioma")
        masks["glioma_numeric_pid"] = glioma & ~np.array([pid[0].isalpha() for pid in predictions.pids.tolist()])
        masks["glioma_mr_pid"] = glioma & np.strings.startswith(predictions.pids, "MR")
    attributes = predictions.attributes
    if "plane" in attributes:
        masks |= {f"plane_{plane}": attributes["plane"] == plane for plane in ("axial", "coronal", "sagittal")}
    if "height" in attributes:
        masks["height_256"] = attributes["height"] == 256
    if "lesion_area" in attributes and not np.isnan(area := attributes["lesion_area"]).all():
        median = np.nanmedian(area)
        masks |= {"lesion_below_median": area < median, "lesion_from_median": area >= median}
    return masks


def subset_results(predictions: Predictions, *, draws: int = 2000, seed: int = 0) -> dict[str, dict[str, Any] | None]:
    """Score every model on every subset, with intervals over the patient groups that have slices in it.

    Args:
        predictions: of the test slices.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Name of the subset to `slices`, `patient_groups` and `models`: for each model `accuracy` and
        `recall_per_class`, as `estimate` gives them; None for a subset without slices.
    """
    results: dict[str, dict[str, Any] | None] = {}
    for name, mask in subset_masks(predictions).items():
        if mask is None or not mask.any():
            results[name] = None
            continue
        part = predictions.select(mask)
        groups, index = part.group_index()
        counts = draw_counts(len(groups), draws, seed)
        per_class = np.bincount(part.patients()[1], minlength=len(part.class_names))
        results[name] = {
            "slices": len(part),
            "patient_groups": len(groups),
            "models": {model: _scores(part, model, index, counts, per_class) for model in part.models},
        }
    return results


def _scores(
    part: Predictions,
    model: str,
    index: NDArray[np.int64],
    counts: NDArray[np.int32],
    groups_per_class: NDArray[np.int64],
) -> dict[str, Any]:
    groups, classes = counts.shape[1], len(part.class_names)
    per_group = group_confusions(part.predicted(model), part.labels, index, groups, classes)
    drawn = confusion_metrics(np.tensordot(counts.astype(np.float64), per_group, axes=1))
    return {
        "accuracy": estimate(drawn["accuracy"], groups),
        "recall_per_class": {
            name: estimate(drawn["recall_per_class"][:, c], int(groups_per_class[c]))
            for c, name in enumerate(part.class_names)
        },
    }
