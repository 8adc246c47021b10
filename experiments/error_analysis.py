#!/usr/bin/env python
"""Where the pooled models are wrong: by patient, plane, size of the tumour and first letters of the id, and pictures.

    python experiments/error_analysis.py RUNS --entry alone --data_dir DIR --figure errors.png

Reads the predictions of `many_runs.py` on the test slices of all folds. A slice counts as wrong by the share of the
entry's seeds that are wrong. The figure shows slices of the patients with the most wrong slices, the tumour outlined;
it holds pictures of patients, so it is for looking at, not for publishing beside the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import matplotlib.pyplot as plt
import numpy as np

from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.mat_file import LABEL_NAMES as LABELS
from hf_kdmri.evaluation.report import markdown_table

FOLDS = range(5)


def main() -> None:
    """Read, print tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that many_runs.py wrote")
    parser.add_argument("--entry", default="alone", help="of the plan, without fold and seed (default: %(default)s)")
    parser.add_argument("--split", default="patient_groups", help="of the plan (default: %(default)s)")
    parser.add_argument("--data_dir", help="folder with the published zips (default: download)")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--patients", type=int, default=8, help="in the figure (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables here")
    arguments = parser.parse_args()
    rows = read(arguments)
    median_area = np.median([row["area"] for row in rows])
    told = {
        "confusion": confusion(rows),
        "plane": by(rows, lambda row: row["plane"]),
        "tumour": by(rows, lambda row: "small, below the median" if row["area"] < median_area else "large"),
        "glioma, id": by(
            [row for row in rows if row["label"] == 1],
            lambda row: "begins with MR" if row["pid"].startswith("MR") else "a number",
        ),
        "patients": worst(rows, arguments.patients),
    }
    for name, table in told.items():
        print(f"\n{name}\n{markdown_table(list(table[0]), [list(map(str, row.values())) for row in table])}")
    few = sum(row["wrong"] for row in rows if row["group"] in {p["group"] for p in told["patients"]})
    everyone = sum(row["wrong"] for row in rows)
    print(
        f"{len(told['patients'])} of {len({row['group'] for row in rows})} patients hold {few / everyone:.0%} of errors"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if arguments.figure:
        draw(rows, told["patients"], arguments.figure)


def read(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each test slice of each fold."""
    rows = []
    for fold in FOLDS:
        files = sorted(arguments.runs.glob(f"{arguments.entry}-f{fold}*.npz"))
        if not files:
            raise SystemExit(f"no predictions of {arguments.entry} for fold {fold} in {arguments.runs}")
        seeds = [dict(np.load(file)) for file in files]
        test = load_slices(
            data_dir=arguments.data_dir, cache_dir=arguments.cache_dir, split=arguments.split, fold=fold
        )["test"]
        assert list(test["slice"]) == seeds[0]["test slice"].tolist()
        predicted = np.stack([seed["test clean"].argmax(1) for seed in seeds])
        for place, row in enumerate(test.remove_columns("image")):
            rows.append(
                {
                    "fold": fold,
                    "place": place,
                    "split": test,
                    "slice": row["slice"],
                    "pid": row["pid"],
                    "group": row["patient_group"],
                    "label": row["label"],
                    "plane": test.features["plane"].names[row["plane"]],
                    "area": float((np.asarray(row["mask"]) > 127).mean()),
                    "said": predicted[:, place].tolist(),
                    "wrong": float((predicted[:, place] != row["label"]).mean()),
                }
            )
    return rows


def confusion(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares of each class's slices by what they are called, in %, mean over seeds."""
    table = []
    for number, label in enumerate(LABELS):
        said = np.array([answer for row in rows if row["label"] == number for answer in row["said"]])
        table.append(
            {"true": label} | {f"called {name}": f"{100 * (said == n).mean():.1f}" for n, name in enumerate(LABELS)}
        )
    return table


def by(rows: list[dict[str, Any]], kind: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """Share of wrong slices of each kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(kind(row), []).append(row)
    return [
        {
            "": name,
            "slices": len(members),
            "patients": len({row["group"] for row in members}),
            "wrong, %": f"{100 * np.mean([row['wrong'] for row in members]):.1f}",
        }
        for name, members in sorted(kinds.items())
    ]


def worst(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The patients with the most wrong slices."""
    patients: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["group"], []).append(row)
    ranked = sorted(patients.items(), key=lambda item: -sum(row["wrong"] for row in item[1]))[:count]
    return [
        {
            "group": group,
            "fold": members[0]["fold"],
            "class": LABELS[members[0]["label"]],
            "slices": len(members),
            "wrong": f"{sum(row['wrong'] for row in members):.1f}",
            "called": max(
                LABELS, key=lambda name: sum(row["said"].count(LABELS.index(name)) for row in members if row["wrong"])
            ),
            "planes": ", ".join(sorted({row["plane"] for row in members if row["wrong"]})),
        }
        for group, members in ranked
    ]


def draw(rows: list[dict[str, Any]], patients: list[dict[str, Any]], path: Path, columns: int = 6) -> None:
    """A row of slices for each patient, those that most seeds get wrong first."""
    figure, axes = plt.subplots(
        len(patients), columns, figsize=(1.7 * columns, 1.85 * len(patients)), layout="constrained", squeeze=False
    )
    for line, patient in zip(axes, patients, strict=True):
        mine = sorted((row for row in rows if row["group"] == patient["group"]), key=lambda row: -row["wrong"])
        for axis, row in zip(line, [*mine, *[None] * columns][:columns], strict=True):
            axis.axis("off")
            if row is None:
                continue
            cell = row["split"][row["place"]]
            axis.imshow(np.asarray(cell["image"]), cmap="gray")
            axis.contour(np.asarray(cell["mask"]) > 127, levels=[0.5], colors="tab:orange", linewidths=0.8)
            said = " / ".join(LABELS[answer][:3] for answer in row["said"])
            axis.set_title(f"{row['slice']}, {row['plane']}: {said}", fontsize=6)
        line[0].text(
            -0.05, 0.5, f"{patient['group']}\n{patient['class']}", transform=line[0].transAxes, rotation=90,
            ha="right", va="center", fontsize=7,
        )  # fmt: skip
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
