"""The table of the ablation, from the rows of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TITLES = {
    "alone": "no teacher",
    "label_smoothing": "no teacher, smoothed labels",
    "hinton": "teacher's logits (Hinton)",
    "fusion": "**multi-scale geometric fusion**",
    "fusion_without_logit": "… without the logits",
    "fusion_without_geometry": "… without the spatial kernel",
    "fusion_without_sample": "… without the geometry between images",
    "fusion_without_exit": "… without the fusion exit",
    "fusion_on_lesions": "… positions weighted by the tumour mask",
    "untrained_teacher": "control: untrained teacher",
    "shuffled": "control: teacher of another image",
    "same_family": "control: teacher of the student's family",
}


PREFACE = """# Ablation

Which part of the method helps, on the real slices (re-encoded to 8 bits), split by patient group. Made by
`python benchmarks/ablation.py`; every number is in `{source}`, one row per student. Pairs and schedules are
`configs/ablation/pairs`, the losses `configs/ablation/losses`: schedules are short and students small, so that many
losses fit on two cores; compare the lines with each other, not with other work.

How to read it: scores are of the **test** patients of the folds named, at the last epoch. Nothing was chosen by them
before they were there; the variant of the fusion that RESULTS.md tries with another student was chosen by them. ±
is the standard deviation over folds. Differences are to the student without a teacher on the same folds, before
averaging. Methods with more folds than the others have a second line, to compare with theirs. The last column is the
first epoch whose validation accuracy reached the best of the student without a teacher, fold by fold. A fold has 41 or
42 test patients: a few points between lines are within what chance does.

What differs besides the loss: random views are drawn at 192 px and scaled down to the student's 128, also without a
teacher, but at 128 where the teacher is EfficientViT-M0 (128 px); so in the second pair most lines are compared with a
student on views of another sharpness.
"""


OUTDATED = """**Outdated.** These students saw other random views ({then}) than are drawn now
({now}). The views of then were smoother than the test slices, which cost every model points and may have changed what
helps: the runs are to be repeated.
"""


def ablation_table(rows: Sequence[Mapping[str, Any]], *, source: str, views: str) -> str:
    """Markdown: for each pair of models a table with a line per method, mean ± standard deviation over folds.

    Args:
        rows: as `benchmarks/ablation.py` writes them.
        source: name of the file that they are in.
        views: that are drawn now; other ones are told.
    """
    parts = [PREFACE.format(source=source)]
    if then := sorted({row["views"] for row in rows} - {views}):
        parts.append(OUTDATED.format(then=", ".join(then), now=views))
    for pair in dict.fromkeys(row["pair"] for row in rows):
        parts.append(_pair_table([row for row in rows if row["pair"] == pair]))
    return "\n".join(parts)


def _pair_table(rows: Sequence[Mapping[str, Any]]) -> str:
    alone = {(row["fold"], row["seed"]): row for row in rows if row["method"] == "alone"}
    first = rows[0]
    teachers = sorted({row["teacher"] for row in rows if row["method"] == "hinton"})
    scores = [row["teacher_accuracy"] for row in rows if row["method"] == "hinton"]
    told = f", test accuracy {_spread(scores)} %" if scores else ""
    schedule = len(first["validation_accuracy"])
    lines = [
        f"## {' / '.join(teachers)} → {first['student']}\n",
        f"Teacher: {' / '.join(teachers)}{told}. Student: {first['student']}, {schedule} epochs. Random views: "
        f"{first['views']}.\n",
        "| method | folds | accuracy, % | difference to no teacher, points | macro F1, % | patients right, % "
        "| epochs to no teacher's best |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    by_method = {method: [row for row in rows if row["method"] == method] for method in TITLES}
    of_all = set.intersection(*({row["fold"] for row in mine} for mine in by_method.values() if mine))
    for method, title in TITLES.items():
        mine = by_method[method]
        if mine:
            lines.append(_line(title, mine, alone))
        if {row["fold"] for row in mine} > of_all:
            lines.append(_line("… the same", [row for row in mine if row["fold"] in of_all], alone))
    return "\n".join(lines) + "\n"


def _line(title: str, mine: Sequence[Mapping[str, Any]], alone: Mapping[tuple[int, int], Mapping[str, Any]]) -> str:
    """One method on some folds, beside the student without a teacher on the same ones."""
    paired = [(row, alone[row["fold"], row["seed"]]) for row in mine if (row["fold"], row["seed"]) in alone]
    differences = [row["accuracy"] - base["accuracy"] for row, base in paired]
    epochs = [_epochs_to(row, max(base["validation_accuracy"])) for row, base in paired]
    cells = [
        title,
        ", ".join(str(row["fold"]) for row in mine),
        _spread([row["accuracy"] for row in mine]),
        "" if mine[0]["method"] == "alone" or not differences else _spread(differences, signed=True),
        _spread([row["macro_f1"] for row in mine]),
        _spread([row["patient_accuracy"] for row in mine]),
        ", ".join("never" if epoch is None else str(epoch) for epoch in epochs),
    ]
    return f"| {' | '.join(cells)} |"


def _epochs_to(row: Mapping[str, Any], accuracy: float) -> int | None:
    """The first epoch whose validation accuracy is at least this."""
    reached = np.flatnonzero(np.array(row["validation_accuracy"]) >= accuracy)
    return int(reached[0]) + 1 if len(reached) else None


def _spread(values: Sequence[float], signed: bool = False) -> str:
    mean = 100 * float(np.mean(values))
    told = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return told if len(values) < 2 else f"{told} ± {100 * float(np.std(values, ddof=1)):.1f}"
