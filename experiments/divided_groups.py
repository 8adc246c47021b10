#!/usr/bin/env python
"""Do the authors' folds leak? Scores of patient groups that they divide, beside those of groups that they leave whole.

    python experiments/divided_groups.py RUNS experiments/plans/short_cvind.yaml --json experiments/divided_groups.json

`cvind` keeps each id in one fold, but ids that differ in a last letter only (MR040240, MR040240B) are most likely one
person's scans: where these lie in several folds, a model was trained on some of a person's slices and is tested on the
others. What follows from that is not told by comparing divided with whole groups at large: only gliomas are divided,
and only those whose ids begin with MR, which are easier than others. So the groups that are compared have the class
and the first letters of the id in common with divided ones. They may still differ in what made somebody scan them
twice, so a difference is a hint and no proof.

Reads the test predictions of `many_runs.py`, all folds pooled. Recall is a mean over seeds; intervals draw patient
groups with replacement, the same draws for all lines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pool_runs import DRAWS, Sample, entries

from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.bootstrap import draw_counts, estimate
from hf_kdmri.evaluation.statistics.summary_tables import difference_cell, estimate_cell


def main() -> None:
    """Read, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that many_runs.py wrote")
    parser.add_argument("plan", type=Path, help="its plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    told = {name: compared(samples) for name, samples in entries(arguments.plan, arguments.runs, "test").items()}
    if not told:
        sys.exit(f"{arguments.runs}: no run of {arguments.plan} has predicted the test slices of all its folds")
    print(table(told))
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def compared(samples: list[Sample]) -> dict[str, Any]:
    """Recall on the slices of divided groups, on those of whole ones of their kind, and the difference."""
    sample = samples[0]
    groups, begins, index = np.unique(sample["group"], return_index=True, return_inverse=True)
    divided = np.array([len(np.unique(sample["fold"][index == row])) > 1 for row in range(len(groups))])
    if not divided.any():
        sys.exit("no patient group was tested in more than one fold, so there is nothing to compare")
    kinds = [(sample["label"][begin], letters(group)) for begin, group in zip(begins, groups, strict=True)]
    kinds_of_divided = {kinds[row] for row in np.flatnonzero(divided)}
    whole = ~divided & np.array([kind in kinds_of_divided for kind in kinds])
    right = np.mean([one["clean"].argmax(1) == one["label"] for one in samples], axis=0)
    counts = draw_counts(len(groups), DRAWS, seed=0)
    told, drawn = {}, []
    for name, rows in {"divided": divided, "whole": whole}.items():
        drawn.append(recall(right, index, counts, rows))
        size = int(rows.sum())
        told[name] = {"patient_groups": size, "slices": int(rows[index].sum()), "recall": estimate(drawn[-1], size)}
    return {**told, "difference": estimate(drawn[0] - drawn[1], int((divided | whole).sum()))}


def letters(group: str) -> str:
    """What stands before the first digit of an id."""
    return re.split(r"\d", str(group), maxsplit=1)[0]


def recall(
    right: NDArray[np.float64], index: NDArray[np.intp], counts: NDArray[np.int32], rows: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(D,) shares of right slices in every draw, over the groups in `rows`; NaN where a draw has none of them."""
    of_group, slices = np.bincount(index, right, len(rows)), np.bincount(index, minlength=len(rows))
    with np.errstate(invalid="ignore"):
        return (counts[:, rows] @ of_group[rows]) / (counts[:, rows] @ slices[rows])


def table(told: dict[str, Any]) -> str:
    """The figures for people."""
    first = next(iter(told.values()))
    heading = ["Recall, %"] + [
        f"{name} groups ({first[name]['patient_groups']} patients, {first[name]['slices']} slices)"
        for name in ("divided", "whole")
    ]
    lines = [
        [name, *(estimate_cell(row[kind]["recall"], "recall") for kind in ("divided", "whole")),
         difference_cell(row["difference"])]
        for name, row in told.items()
    ]  # fmt: skip
    return markdown_table([*heading, "Difference, points"], lines)


if __name__ == "__main__":
    main()
