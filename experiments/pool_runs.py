#!/usr/bin/env python
"""Pool the test predictions that `many_runs.py` left: folds into one sample of patients, seeds into means.

    python experiments/pool_runs.py RUNS experiments/plans/folds.yaml --split test --json experiments/folds.json

Each line of the table is one entry of the plan. Within a seed, the slices of all folds are one sample. Intervals draw
patient groups with replacement, the same draws for all lines; a figure of a draw is the mean over the seeds. So they
say how far other patients would move the figure; the standard deviation over seeds is given apart. A difference is
taken draw by draw.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from many_runs import MADE_BY, planned, read_plan
from sklearn.metrics import balanced_accuracy_score

from hf_kdmri.data.mat_file import LABEL_NAMES as LABELS
from hf_kdmri.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
)
from hf_kdmri.evaluation.calibration.selective import patient_means
from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.bootstrap import Draws, draw_counts, draw_metrics, estimate
from hf_kdmri.evaluation.statistics.significance import permutation_test
from hf_kdmri.evaluation.statistics.summary_tables import difference_cell, estimate_cell, p_cell
from hf_kdmri.training.run_folder import RunFolder

DRAWS = 2000
COMPARED = ("accuracy", "macro_f1", "patient_accuracy", "macro_auroc", "brier")
PER_CLASS = {"recall": "recall_per_class", "auroc": "auroc_per_class"}  # reported as, of `draw_metrics`
ALTERED = {"cropped": "balanced_cropped", "other look": "balanced_other_look"}  # kept under, reported as
Sample = dict[str, np.ndarray]


def main() -> None:
    """Read, pool, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that many_runs.py wrote")
    parser.add_argument("plan", type=Path, help="its plan")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="(default: %(default)s)")
    parser.add_argument("--folds", nargs="+", type=int, help="these alone, for a plan of which not all was done")
    parser.add_argument("--seeds", nargs="+", type=int, help="these alone, of entries that the plan repeats over seeds")
    parser.add_argument("--against", nargs="+", default=[], metavar="A:B", help="differences A minus B, by plan names")
    parser.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="NAME=A[+B]",
        help="further lines: the mean of the probabilities of all seeds of these entries",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    told: dict[str, Any] = {"split": arguments.split, "entries": {}, "differences": {}}
    pooled: dict[str, list[Sample]] = {}
    drawn: dict[str, Draws] = {}
    only = {"folds": arguments.folds, "seeds": arguments.seeds}
    for name, samples in entries(arguments.plan, arguments.runs, arguments.split, **only).items():
        pooled[name] = samples
        drawn[name], told["entries"][name] = scores(samples)
    for asked in arguments.ensemble:
        name, _, members = asked.partition("=")
        if not members or name in pooled or ":" in name:
            sys.exit(f"--ensemble {asked}: expected NAME=A or NAME=A+B, with a new NAME without a colon")
        pooled[name] = [ensemble(pooled, members.split("+"))]
        drawn[name], told["entries"][name] = scores(pooled[name])
    for pair in arguments.against:
        one, other = pair.split(":")
        told["differences"][pair] = difference(pooled, drawn, one, other)
    told["runs"] = {run["name"]: history(arguments.runs / run["name"]) for run in planned(arguments.plan)}
    print(table(told))
    for pair, row in told["differences"].items():
        p = ", ".join(map(p_cell, row["permutation_p"]))
        p += f", of their mean {p_cell(row['permutation_p_of_mean'])}" if "permutation_p_of_mean" in row else ""
        print(f"{pair}: accuracy {difference_cell(row['accuracy'])} points, permutation p by seed {p}")
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def history(run: Path) -> dict[str, Any]:
    """A run's epochs, seconds, code and validation accuracy after each epoch so far; empty where it never began."""
    validated = [row for row in RunFolder(run).read_history() if "eval_accuracy" in row]
    if not validated:
        return {}
    made_by = run / MADE_BY
    return {
        "code": json.loads(made_by.read_text(encoding="utf-8"))["code"] if made_by.is_file() else None,
        "epochs": validated[-1]["epoch"],
        "seconds": round(validated[-1]["seconds"], 1),
        "validation_accuracy": [round(row["eval_accuracy"], 4) for row in validated],
        "finished": run.with_suffix(".npz").is_file(),
    }


def short(name: str) -> str:
    """An entry's name without its fold and seed."""
    return name.replace("-f{fold}", "").replace("-s{seed}", "")


def entries(
    plan: Path, runs: Path, split: str, *, folds: Sequence[int] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, list[Sample]]:
    """The pooled samples of each entry of a plan by its short name; entries of which no seed is whole are left out."""
    told = read_plan(plan)["runs"]
    samples = {short(entry["name"]): seeds_of(entry, runs, split, folds, seeds) for entry in told}
    return {name: of_seeds for name, of_seeds in samples.items() if of_seeds}


def seeds_of(
    entry: dict[str, Any], runs: Path, split: str, only_folds: Sequence[int] | None, only_seeds: Sequence[int] | None
) -> list[Sample]:
    """One pooled sample for each seed whose folds are all there, in order; of these folds and seeds only, if given."""
    samples = []
    folds = [fold for fold in entry.get("folds", [0]) if only_folds is None or fold in only_folds]
    for seed in sorted(entry.get("seeds", [42])):
        if "seeds" in entry and only_seeds is not None and seed not in only_seeds:
            continue
        files = [runs / f"{entry['name'].format(fold=fold, seed=seed)}.npz" for fold in folds]
        parts = {fold: dict(np.load(file)) for fold, file in zip(folds, files, strict=True) if file.is_file()}
        if len(parts) == len(folds) > 0 and all(f"{split} label" in part for part in parts.values()):
            samples.append({**pool(parts, split), "seed": np.array(seed)})
    return samples


def pool(parts: Mapping[int, Sample], split: str) -> Sample:
    """Join the folds, each with the temperature that its validation slices ask for."""
    sample: Sample = {}
    each = list(parts.values())
    for key in ("label", "slice", "group", "clean"):
        sample[key] = np.concatenate([part[f"{split} {key}"] for part in each])
    if all(f"{split} cropped" in part for part in each):
        sample["cropped"] = np.concatenate([part[f"{split} cropped"] for part in each])
        sample["other look"] = np.concatenate([part[f"{split} other look"] for part in each], axis=1)
    sample["fold"] = np.concatenate([np.full(len(part[f"{split} label"]), fold) for fold, part in parts.items()])
    sample["scaled"] = np.concatenate([scaled(part, split) for part in each])
    return sample


def ensemble(pooled: dict[str, list[Sample]], members: list[str]) -> Sample:
    """One sample whose probabilities are the means over all seeds of some entries."""
    if missing := [name for name in members if name not in pooled]:
        sys.exit(f"--ensemble: no seed of {missing[0]!r} is finished; there are {', '.join(pooled)}")
    samples = [sample for name in members for sample in pooled[name]]
    if any(not np.array_equal(sample["slice"], samples[0]["slice"]) for sample in samples):
        sys.exit(f"--ensemble {'+'.join(members)}: they were tested on other folds, so no mean can be taken")
    means = {
        key: np.mean([sample[key] for sample in samples], axis=0)
        for key in ("clean", "scaled", *ALTERED)
        if key in samples[0]
    }
    return {**samples[0], **means}


def scaled(part: Sample, split: str) -> np.ndarray:
    """Probabilities of one fold after temperature scaling; as they are where validation asks for no temperature."""
    try:
        fitted = fit_temperature(
            log_probabilities(part["validation clean"]), part["validation label"], split="validation", groups=None
        )
    except ValueError as error:  # every slice right, or no better than chance
        print(f"not scaled: {error}", file=sys.stderr)
        return part[f"{split} clean"]
    return apply_temperature(log_probabilities(part[f"{split} clean"]), fitted, groups=None)


def draws_of(sample: Sample) -> tuple[Draws, Draws, int]:
    """Metrics over slices and over patients in every draw, and the number of patient groups."""
    groups, index = np.unique(sample["group"], return_inverse=True)
    counts = draw_counts(len(groups), DRAWS, seed=0)
    p = sample["clean"].astype(np.float64)
    slices = draw_metrics(p, sample["label"], index, counts)
    of_patients, labels, _ = patient_means(p, sample["label"], sample["group"].tolist())
    return slices, draw_metrics(of_patients, labels, np.arange(len(groups)), counts), len(groups)


def scores(samples: list[Sample]) -> tuple[Draws, dict[str, Any]]:
    """An entry's figures: the mean over seeds with its interval over patients, and the spread over seeds."""
    each = [draws_of(sample) for sample in samples]
    groups = each[0][2]
    mean = {name: np.mean([slices[name] for slices, _, _ in each], axis=0) for name in each[0][0]}
    mean["patient_accuracy"] = np.mean([of_patients["accuracy"] for _, of_patients, _ in each], axis=0)

    def over_seeds(values: list[float]) -> dict[str, Any]:
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(np.mean(values)), "sd": sd, "each": values}

    told = {
        "seeds": len(samples),
        "slices": len(samples[0]["label"]),
        "patient_groups": groups,
        **{name: estimate(mean[name], groups) for name in (*COMPARED, "balanced_accuracy")},
        **{name: by_class(mean[key], groups) for name, key in PER_CLASS.items()},
        "accuracy_over_seeds": over_seeds([float(slices["accuracy"][0]) for slices, _, _ in each]),
        "accuracy_by_fold": [
            float(np.mean([(s["clean"].argmax(1) == s["label"])[s["fold"] == fold].mean() for s in samples]))
            for fold in np.unique(samples[0]["fold"])
        ],
        "ece": over_seeds([expected_calibration_error(s["clean"], s["label"]) for s in samples]),
        "ece_scaled": over_seeds([expected_calibration_error(s["scaled"], s["label"]) for s in samples]),
    }
    for key, name in ALTERED.items():
        if key in samples[0]:
            told[name] = over_seeds([balanced(s, key) for s in samples])
    return mean, told


def by_class(values: np.ndarray, groups: int) -> dict[str, Any]:
    """Each class's estimate from (draws, classes)."""
    return {label: estimate(values[:, c], groups) for c, label in enumerate(LABELS)}


def balanced(sample: Sample, key: str) -> float:
    """Balanced accuracy on altered slices; the mean over the looks where there are several."""
    looks = sample[key] if sample[key].ndim == 3 else sample[key][None]
    return float(np.mean([balanced_accuracy_score(sample["label"], look.argmax(1)) for look in looks]))


def difference(pooled: dict[str, list[Sample]], drawn: dict[str, Draws], one: str, other: str) -> dict[str, Any]:
    """Entry `one` minus entry `other`: intervals over patients of the seeds' mean, and a permutation test per seed.

    Seed is compared with seed; a model of one seed, as a teacher or an ensemble, with every seed of the other entry.
    """
    for name in (one, other):
        if name not in pooled:
            sys.exit(f"--against {one}:{other}: no seed of {name!r} is finished; there are {', '.join(pooled)}")
    if not np.array_equal(pooled[one][0]["slice"], pooled[other][0]["slice"]):
        sys.exit(f"--against {one}:{other}: the two were tested on other folds, so they cannot be compared")
    groups, index = np.unique(pooled[one][0]["group"], return_inverse=True)
    told: dict[str, Any] = {name: estimate(drawn[one][name] - drawn[other][name], len(groups)) for name in COMPARED}
    told |= {name: by_class(drawn[one][key] - drawn[other][key], len(groups)) for name, key in PER_CLASS.items()}
    pairs = pairs_of(pooled[one], pooled[other])
    told["permutation_p"] = [permuted([pair], index) for pair in pairs]
    if len(pairs) == max(len(pooled[one]), len(pooled[other])) > 1:
        told["permutation_p_of_mean"] = permuted(pairs, index)
    return told


def pairs_of(first: list[Sample], second: list[Sample]) -> list[tuple[Sample, Sample]]:
    """The samples of two entries that are compared, in the order of their seeds."""
    one_seed = len(first) == 1 or len(second) == 1
    return [(a, b) for a in first for b in second if one_seed or a["seed"] == b["seed"]]


def permuted(pairs: list[tuple[Sample, Sample]], index: np.ndarray) -> Any:
    """Test two entries' accuracies, means over seeds: a patient's answers change sides together, those of all seeds."""
    first, second = ([sample["clean"].argmax(1) for sample in side] for side in zip(*pairs, strict=True))
    labels = np.tile(pairs[0][0]["label"], len(pairs))
    tested = permutation_test(
        np.concatenate(first), np.concatenate(second), labels, np.tile(index, len(pairs)), classes=len(LABELS)
    )
    return tested["accuracy"]


def table(told: dict[str, Any]) -> str:
    """The figures for people."""
    heading = ["", "Seeds", "Accuracy", "SD over seeds", "By fold", "Macro F1", *LABELS, "Patients right"]
    heading += ["Macro AUROC", "Brier", "ECE", "scaled", "Cropped", "Other look"]
    lines = [
        [
            name, str(row["seeds"]), estimate_cell(row["accuracy"], "accuracy"),
            f"{100 * row['accuracy_over_seeds']['sd']:.1f}",
            " ".join(f"{100 * value:.1f}" for value in row["accuracy_by_fold"]),
            estimate_cell(row["macro_f1"], "macro_f1"),
            *(estimate_cell(row["recall"][label], "recall") for label in LABELS),
            estimate_cell(row["patient_accuracy"], "accuracy"),
            *(estimate_cell(row[name], name) for name in ("macro_auroc", "brier")),
            f"{row['ece']['mean']:.3f}", f"{row['ece_scaled']['mean']:.3f}",
            *(f"{100 * row[key]['mean']:.1f}" if key in row else "" for key in ALTERED.values()),
        ]
        for name, row in told["entries"].items()
    ]  # fmt: skip
    return markdown_table(heading, lines)


if __name__ == "__main__":
    main()
