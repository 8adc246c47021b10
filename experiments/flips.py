#!/usr/bin/env python
"""What a look in the mirror gains: the mean of a model's probabilities for a slice and for its left-right mirror image.

    python experiments/flips.py RUNS experiments/plans/short_cvind.yaml --out FLIPS --data_dir DIR --split validation
    python experiments/flips.py experiments/predictions/short_cvind experiments/plans/short_cvind.yaml \\
      --out experiments/predictions/flips_cvind --split test     # from answers that are kept: neither models nor data

Takes the models that `many_runs.py` left in RUNS and the predictions beside them, asks each model on the CPU for the
mirrored slices of both splits, and writes the means to FLIPS, in the same form. What is there already is not asked
again: delete FLIPS after a model was trained anew. Nothing is trained; such an answer costs a second forward pass.

The table sets it beside the plain answer, intervals and tests over patient groups as in `pool_runs.py`, which takes
FLIPS as well, to compare one model with another.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from many_runs import clean_pictures, is_finished, keep_predictions, planned, probabilities, run_options
from pool_runs import difference, entries, scores

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.summary_tables import difference_cell, estimate_cell, p_cell
from hf_kdmri.training.inputs import prepare_data
from hf_kdmri.training.run_folder import RunFolder


def main() -> None:
    """Ask, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that many_runs.py wrote")
    parser.add_argument("plan", type=Path, help="its plan")
    parser.add_argument("--out", type=Path, required=True, help="folder for the means")
    parser.add_argument(
        "--split",
        choices=["validation", "test"],
        default="validation",
        help="which the table is of (default: %(default)s)",
    )
    parser.add_argument("--data_dir", help="folder with the published zips; not needed where all means are there")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.out.resolve() == arguments.runs.resolve():
        parser.error("--out is the folder of the runs themselves; choose another one for the means")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in planned(arguments.plan):
        if is_finished(run["name"], arguments.runs) and not is_finished(run["name"], arguments.out):
            write_means(run, arguments)
    plain, with_mirror = (
        entries(arguments.plan, folder, arguments.split) for folder in (arguments.runs, arguments.out)
    )
    if not with_mirror:
        sys.exit(f"{arguments.out}: no seed of {arguments.plan} has all its folds")
    told: dict[str, Any] = {"split": arguments.split, "entries": {}}
    for name, mirrored in with_mirror.items():
        if len(plain.get(name, [])) != len(mirrored):
            sys.exit(f"{arguments.runs} has not all the runs of {name!r} that {arguments.out} has the means of")
        pooled = {"plain": plain[name], "mirrored": mirrored}
        drawn, figures = {}, {}
        for kind, samples in pooled.items():
            drawn[kind], figures[kind] = scores(samples)
        told["entries"][name] = {**figures, "difference": difference(pooled, drawn, "mirrored", "plain")}
    print(table(told["entries"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def write_means(run: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Ask a run's model for the mirrored slices of both splits."""
    folder = RunFolder(arguments.runs / run["name"])
    if arguments.data_dir is None:
        sys.exit(f"{arguments.out} has no {run['name']}.npz: give --data_dir, so that its model can be asked")
    if not folder.has_model(run["stage"]):
        sys.exit(
            f"{folder.path} holds no model to ask; {arguments.runs} must be what many_runs.py wrote, models and all"
        )
    options = run_options(run, arguments)
    model = TeacherForImageClassification.from_pretrained(folder.model_folder(run["stage"])).eval()
    said = np.load(arguments.runs / f"{run['name']}.npz")
    data = prepare_data(options, RunFolder(arguments.out / run["name"]), PartialState())
    kept: dict[str, np.ndarray] = {}
    for split in ("validation", "test") if "test clean" in said else ("validation",):
        kept |= {f"{split} {key}": said[f"{split} {key}"] for key in ("label", "slice", "group")}
        mirrored = probabilities(model, clean_pictures(model, data.splits[split]).flip(-1))
        kept[f"{split} clean"] = (said[f"{split} clean"] + mirrored) / 2
    keep_predictions(kept, arguments.out, run["name"])
    print(f"{run['name']}: asked", file=sys.stderr, flush=True)


def table(told: dict[str, Any]) -> str:
    """The figures for people."""
    lines = []
    for name, row in told.items():
        accuracies = [estimate_cell(row[kind]["accuracy"], "accuracy") for kind in ("plain", "mirrored")]
        gained = row["difference"]
        p = ", ".join(map(p_cell, gained["permutation_p"]))
        cells = [difference_cell(gained["accuracy"]), p, difference_cell(gained["recall"]["meningioma"])]
        lines.append([name, str(row["plain"]["seeds"]), *accuracies, *cells])
    heading = ["Model", "Seeds", "Accuracy, %, plain", "With mirror image", "Difference, points", "p by seed"]
    return markdown_table([*heading, "Meningiomas, points"], lines)


if __name__ == "__main__":
    main()
