"""Fit the classifier of `hf_kdmri.data.planes` to the hand-labelled slices and write its weights.

    python -m dataset_script.fit_planes --data_dir DIR_WITH_THE_ZIPS

The hand labels are `hf_kdmri/data/figshare_planes.csv`: slices drawn at random, labelled by eye from contact sheets
before anything was predicted. Slices marked `fit` are of patient groups in parts 0 to 7, `check` of those in parts 8
and 9. What was chosen (features, regularisation) was chosen by cross-validation on `fit`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from hf_kdmri.data.archives import find_slices, read_slices
from hf_kdmri.data.mat_file import read_slice
from hf_kdmri.data.planes import HAND_LABELS_FILE, PLANES, WEIGHTS_FILE, plane_features, slice_plane
from hf_kdmri.data.splits import patient_group_of


def main() -> None:
    """Fit, write, and print the accuracy on both samples."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.fit_planes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="folder with the published zips")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FILE, help="weights (default: the package's own)")
    parser.add_argument("--check_only", action="store_true", help="only score the weights that are there")
    arguments = parser.parse_args()
    with open(HAND_LABELS_FILE, newline="", encoding="utf-8") as file:
        labelled = {int(row["slice"]): row for row in csv.DictReader(file)}
    try:
        entries = [entry for entry in find_slices(arguments.data_dir) if entry.number in labelled]
        if len(entries) < len(labelled):
            parser.error(
                f"{arguments.data_dir} has {len(entries)} of the {len(labelled)} hand-labelled slices; give all zips"
            )
        slices = [read_slice(data, entry.name) for entry, data in read_slices(entries)]
    except ValueError as error:  # what the readers raise for data that cannot be used
        parser.error(str(error))
    planes = np.array([labelled[item.number]["plane"] for item in slices])
    is_fit = np.array([labelled[item.number]["used_for"] == "fit" for item in slices])

    if not arguments.check_only:
        features = np.stack([plane_features(item.image) for item in slices])
        groups = np.array([patient_group_of(item.pid) for item in slices])
        model = LogisticRegression(C=0.01, max_iter=1000)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        told = cross_val_predict(model, features[is_fit], planes[is_fit], groups=groups[is_fit], cv=folds)
        print(f"cross-validated over patient groups, fit: {describe(planes[is_fit], told)}")
        model.fit(features[is_fit], planes[is_fit])
        table = np.column_stack([model.coef_, model.intercept_])
        np.savetxt(arguments.out, table, delimiter=",", fmt="%.5g")
        print(f"wrote {arguments.out}")
    if arguments.out == WEIGHTS_FILE:
        told = np.array([slice_plane(item.image) for item in slices])
        print(f"check: {describe(planes[~is_fit], told[~is_fit])}")


def describe(planes: np.ndarray, told: np.ndarray) -> str:
    """Accuracy with Wilson's 95 % interval, and the confusion matrix (rows: by eye)."""
    right, n = int((planes == told).sum()), len(planes)
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    matrix = confusion_matrix(planes, told, labels=list(PLANES)).tolist()
    return f"{right} of {n} right, {right / n:.1%} (95 % interval {low:.1%} to {high:.1%}); {PLANES}: {matrix}"


if __name__ == "__main__":
    main()
