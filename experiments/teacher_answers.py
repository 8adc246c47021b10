#!/usr/bin/env python
"""What do teachers say of the slices that they were trained on, and of others? A student hears only the former.

    python experiments/teacher_answers.py RUNS --entry strong --data_dir DIR --json FILE

For each fold's teacher, on the slices as they are: how often it is right, how sure it is (mean probability of the class
on top), and the mean entropy of its answers at the temperature of Hinton's loss, in bits (log2 3 = 1.58 at most).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from many_runs import clean_pictures, model_of, probabilities
from scipy.stats import entropy

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data.loading import load_slices


def main() -> None:
    """Ask every fold's teacher, print a line for each split of slices, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of many_runs.py")
    parser.add_argument("--entry", default="strong", help="whose runs are NAME-f0 and so on (default: %(default)s)")
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="(default: all five)")
    parser.add_argument("--split", default="patient_groups", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=4.0, help="(default: %(default)s)")
    parser.add_argument("--data_dir", help="folder with the published zips (default: download)")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"train": [], "validation": []}
    for fold in arguments.folds:
        folder = model_of(f"{arguments.entry}-f{fold}", arguments.runs)
        if folder is None:
            parser.error(f"{arguments.runs} has no trained {arguments.entry}-f{fold}")
        model = TeacherForImageClassification.from_pretrained(folder).eval()
        splits = load_slices(
            data_dir=arguments.data_dir, cache_dir=arguments.cache_dir, split=arguments.split, fold=fold
        )
        for split, told in rows.items():
            said = probabilities(model, clean_pictures(model, splits[split]))
            told.append(figures(said, np.asarray(splits[split]["label"][:]), arguments.temperature))
            line = ", ".join(f"{name} {value:.3f}" for name, value in told[-1].items())
            print(f"fold {fold}, {split}: {line}", flush=True)
    for split, told in rows.items():
        means = {name: float(np.mean([row[name] for row in told])) for name in told[0]}
        print(f"{split}, mean of folds: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def figures(said: np.ndarray, truth: np.ndarray, temperature: float) -> dict[str, float]:
    """Of probabilities (N, C) and the true classes (N,): accuracy, confidence, and entropy in bits at a temperature."""
    return {
        "accuracy": float((said.argmax(1) == truth).mean()),
        "confidence": float(said.max(1).mean()),
        "entropy": float(entropy(said ** (1 / temperature), base=2, axis=1).mean()),  # which makes them sum to 1 again
    }


if __name__ == "__main__":
    main()
