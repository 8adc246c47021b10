"""Runs side by side on the very same test images, with paired intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.evaluation.statistics.bootstrap import Draws, draw_counts, draw_metrics, estimate
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.evaluation.statistics.significance import mcnemar, permutation_test
from hf_kdmri.evaluation.statistics.summary_tables import difference_cell, estimate_cell, p_cell
from hf_kdmri.wording import counted

METRICS = ("accuracy", "macro_f1", "balanced_accuracy")


def compare_runs(
    runs: Mapping[str, Predictions],
    *,
    model: str = "student",
    common: bool = False,
    draws: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score one model of each run, and test every run against the first.

    Args:
        runs: name of each run to its test predictions, two or more; classes in one order.
        model: "student", "baseline" or "teacher".
        common: compare on the images that all runs tested; else runs with different test images are refused.
        draws: of the bootstrap over patient groups; all runs get the same draws, so differences are paired.
        permutations: of the test.
        seed: of draws and permutations.

    Returns:
        Plain Python, ready for JSON: `model`, `slices`, `patient_groups`, `runs` (name to metrics with `value` and
        `interval`, and `patient_accuracy`), and `against` (each further run's name to `differences`, `permutation_p`
        and `mcnemar` over patients, run minus first).

    Raises:
        ValueError: fewer than two runs, a run without the model, other classes or labels, or other test images.
    """
    if len(runs) < 2:
        raise ValueError(f"there is {len(runs)} run to compare; give two or more")
    first_name, *other_names = runs
    for name, run in runs.items():
        if model not in run.models:
            raise ValueError(f"{name} has no predictions of the {model}; it has {', '.join(run.models)}")
        if run.class_names != runs[first_name].class_names:
            raise ValueError(
                f"{name} has the classes {run.class_names}, {first_name} {runs[first_name].class_names}; runs on one "
                "data set can be compared"
            )
    aligned = _aligned(runs, common)
    first = aligned[first_name]
    groups, index = first.group_index()
    counts = draw_counts(len(groups), draws, seed)
    drawn = {name: draw_metrics(run.probabilities[model], run.labels, index, counts) for name, run in aligned.items()}
    patients = {name: run.patients() for name, run in aligned.items()}
    drawn_patients = {
        name: draw_metrics(p[model], labels, np.arange(len(groups)), counts) for name, (p, labels) in patients.items()
    }
    scores = {
        name: {
            **{metric: estimate(drawn[name][metric], len(groups)) for metric in METRICS},
            "patient_accuracy": estimate(drawn_patients[name]["accuracy"], len(groups)),
        }
        for name in aligned
    }
    against = {}
    for name in other_names:
        right = [patients[run][0][model].argmax(1) == patients[run][1] for run in (name, first_name)]
        against[name] = {
            "differences": {
                **{metric: _difference(drawn[name], drawn[first_name], metric, len(groups)) for metric in METRICS},
                "patient_accuracy": _difference(
                    drawn_patients[name], drawn_patients[first_name], "accuracy", len(groups)
                ),
            },
            "permutation_p": permutation_test(
                aligned[name].predicted(model),
                first.predicted(model),
                first.labels,
                index,
                classes=len(first.class_names),
                permutations=permutations,
                seed=seed,
            ),
            "mcnemar": mcnemar(*right),
        }
    return {
        "model": model,
        "first": first_name,
        "slices": len(first),
        "patient_groups": len(groups),
        "runs": scores,
        "against": against,
    }


def compare_table(comparison: Mapping[str, Any]) -> str:
    """Write a comparison as a Markdown table, one line per run.

    Args:
        comparison: as `compare_runs` returns it.
    """
    first = comparison["first"]
    heading = [
        "Run",
        "Accuracy",
        "Macro F1",
        "Patient accuracy",
        "Accuracy − first, points",
        "p (permutation)",
        "Macro F1 − first, points",
        "p (permutation)",
        "p (McNemar, patients)",
    ]
    lines = []
    for name, scores in comparison["runs"].items():
        cells = [name, *(estimate_cell(scores[key], key) for key in ("accuracy", "macro_f1", "patient_accuracy"))]
        if name == first:
            cells += ["", "", "", "", ""]
        else:
            told = comparison["against"][name]
            for metric in ("accuracy", "macro_f1"):
                cells += [difference_cell(told["differences"][metric]), p_cell(told["permutation_p"][metric])]
            cells.append(p_cell(told["mcnemar"]["p"]))
        lines.append(cells)
    return (
        f"{markdown_table(heading, lines)}\n"
        f"{comparison['model']} on {counted(comparison['slices'], 'test image')} of "
        f"{counted(comparison['patient_groups'], 'patient group')}; brackets are 95 % intervals from draws of "
        "patient groups, differences are paired.\n"
    )


def _aligned(runs: Mapping[str, Predictions], common: bool) -> dict[str, Predictions]:
    """The runs' predictions in one order of slices."""
    shared = set.intersection(*({int(number) for number in run.slices} for run in runs.values()))
    for name, run in runs.items():
        if not shared:
            raise ValueError(f"{name} shares no test image with the other runs; compare runs of one split and fold")
        if len(run) > len(shared) and not common:
            raise ValueError(
                f"{name} was tested on {len(run)} images, {len(run) - len(shared)} of which another run was not tested "
                "on; compare runs of the same split and folds, or only what they share with --common"
            )
    aligned = {}
    for name, run in runs.items():
        row_of = {int(number): row for row, number in enumerate(run.slices)}
        aligned[name] = run.select(np.array([row_of[number] for number in sorted(shared)]))
    first_name, first = next(iter(aligned.items()))
    for name, run in aligned.items():
        if (other := np.flatnonzero(run.labels != first.labels)).size:
            raise ValueError(f"slice {run.slices[other[0]]} has one label in {name} and another one in {first_name}")
        if (run.patient_groups != first.patient_groups).any():
            raise ValueError(f"{name} and {first_name} name the patient groups of the same images differently")
    return aligned


def _difference(drawn: Draws, of_first: Draws, metric: str, groups: int) -> Any:
    return estimate(drawn[metric] - of_first[metric], groups)
