#!/usr/bin/env python
"""Scores of trained models on the validation slices of their fold, clean and as other places might show them.

    python experiments/validation_scores.py RUN_FOLD_0/student RUN_FOLD_1/student --folds 0 1 --data_dir DIR

There is no set of pictures of other origin here, so choices are made on what can be done to validation slices:

- `corrupted`: mean accuracy over the 15 corruptions of docs/robustness.md, each at its middle severity;
- `cropped`: cut to the head and stretched to a square, as most pictures on the web are;
- `cropped, other look`: the same with a random tone curve, sharpness, noise, marks and JPEG (`RandomAppearance`, all of
  its changes more likely than in training).

All figures are balanced accuracies. The test split is not touched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from altered_views import VIEW_SIZE, altered_views
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor

from hf_kdmri import StudentForImageClassification
from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.views import ViewDataset, prepare_views
from hf_kdmri.evaluation.robustness.accuracy import predict_classes
from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES, corrupt


def main() -> None:
    """Score every model, print a line for each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--folds", nargs="+", type=int, required=True, help="fold of each model, in the same order")
    parser.add_argument("--split", default="patient_groups", help="(default: %(default)s)")
    parser.add_argument("--data_dir", help="folder with the published zips (default: download)")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if len(arguments.folds) != len(arguments.models):
        parser.error(f"{len(arguments.models)} models, but {len(arguments.folds)} folds; name the fold of each model")
    rows = []
    for folder, fold in zip(arguments.models, arguments.folds, strict=True):
        splits = load_slices(
            data_dir=arguments.data_dir, cache_dir=arguments.cache_dir, split=arguments.split, fold=fold
        )
        views = prepare_views(splits["validation"], VIEW_SIZE)
        rows.append({"model": str(folder), "fold": fold, **scores(folder, views)})
        print(f"{folder}, fold {fold}: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in rows[-1].items() if k in FIGURES))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


FIGURES = ("accuracy", "balanced", "corrupted", "cropped", "cropped, other look")


def scores(folder: Path, views: ViewDataset) -> dict[str, float | dict[str, float]]:
    """Accuracy and balanced accuracies of one model, fractions."""
    model = StudentForImageClassification.from_pretrained(folder).eval()
    pictures = torch.from_numpy(np.stack([views.view(row) for row in range(len(views))]))
    index = torch.arange(len(views))

    def predict(images: Tensor) -> np.ndarray:
        return np.concatenate([predict_classes(model, batch) for batch in images.split(32)])

    def balanced(images: Tensor) -> float:
        return float(balanced_accuracy_score(views.labels, predict(images)))

    clean = predict(pictures)
    each = {
        name: balanced(corrupt(pictures, index, name, (len(levels) + 1) // 2)) for name, levels in SEVERITIES.items()
    }
    altered = altered_views(pictures)
    return {
        "accuracy": float(accuracy_score(views.labels, clean)),
        "balanced": float(balanced_accuracy_score(views.labels, clean)),
        "corrupted": float(np.mean(list(each.values()))),
        "cropped": balanced(*altered["cropped"]),
        "cropped, other look": float(np.mean([balanced(look) for look in altered["other look"]])),
        "corruptions": each,
    }


if __name__ == "__main__":
    main()
