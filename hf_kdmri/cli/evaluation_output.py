"""What `kdmri evaluate` prints and writes: the report, whatever metrics it holds, and a file of predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from scipy.stats import binomtest

from hf_kdmri.data.label_file import LabelledFile
from hf_kdmri.evaluation.metrics import ClassificationReport
from hf_kdmri.evaluation.report import escape_markdown
from hf_kdmri.evaluation.robustness.accuracy import accuracy_draws
from hf_kdmri.evaluation.statistics.bootstrap import MIN_GROUPS, estimate
from hf_kdmri.whole_files import whole_file
from hf_kdmri.wording import counted

PREDICTION_SUFFIXES = (".csv", ".parquet")
_PER_CLASS = "_per_class"
_INTERVAL = "_interval"
_PERCENT = ("accuracy", "f1", "recall", "precision", "sensitivity", "specificity")
_UPPER = {"f1": "F1", "mcc": "MCC", "auroc": "AUROC", "ece": "ECE", "brier": "Brier"}


def check_prediction_file(path: Path) -> None:
    """Refuse a file that could not be written at the end, before the work begins.

    Raises:
        ValueError: another suffix than .csv or .parquet, or a folder that is not there.
    """
    if path.suffix.lower() not in PREDICTION_SUFFIXES:
        raise ValueError(f"--predictions {path} ends in {path.suffix!r}; expected {' or '.join(PREDICTION_SUFFIXES)}")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--predictions {path} cannot be written: {path.parent} is no folder, or {path} is one")


def write_predictions(
    path: Path,
    rows: Sequence[LabelledFile],
    probabilities: Sequence[NDArray[np.floating]],
    class_names: Sequence[str],
    root: Path,
) -> None:
    """Write one row for each image, whole or not at all, as CSV or Parquet by the suffix.

    Columns: `file` (relative to `root`), `label` (the true class), `patient` (where known), `predicted`, `score` and
    `probability_<class>` for each class.

    Args:
        path: Ends in .csv or .parquet; its folder exists.
        rows: N files.
        probabilities: (N, C).
        class_names: C names.
        root: Folder that the files lie in.

    Raises:
        OSError: The file cannot be written.
    """
    p = np.stack(probabilities)
    best = p.argmax(axis=1)
    columns: dict[str, Any] = {
        "file": [row.path.relative_to(root).as_posix() for row in rows],
        "label": [class_names[row.label] for row in rows],
    }
    if rows[0].patient is not None:
        columns["patient"] = [row.patient for row in rows]
    columns["predicted"] = [class_names[number] for number in best]
    columns["score"] = p.max(axis=1)
    columns |= {f"probability_{name}": p[:, number] for number, name in enumerate(class_names)}
    table = pa.table(columns)
    with whole_file(path) as stream:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, stream, pyarrow.csv.WriteOptions(quoting_style="needed"))
        else:
            pyarrow.parquet.write_table(table, stream)


def score_files(
    rows: Sequence[LabelledFile],
    probabilities: Sequence[NDArray[np.floating]],
    class_names: Sequence[str],
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """Compute every metric of `ClassificationReport` and, where patients are known, 95 % intervals of accuracy.

    Both intervals are over patients, never over slices: a bootstrap that draws patients for the accuracy over slices,
    Wilson's for the accuracy over patients. The bootstrap's is None where `bootstrap.estimate` gives none: below 20
    patients, and where all or no slices are right.

    Args:
        rows: N files, all with a patient or all without.
        probabilities: (N, C).
        class_names: C names.
        files: see `describe_files`; goes into the report as it is.

    Returns:
        The report, with `files` and, with patients, `accuracy_interval` [low, high] in it and in `patients`.

    Raises:
        ValueError: a patient has two labels.
    """
    p, labels, patients = np.stack(probabilities), [row.label for row in rows], [row.patient for row in rows]
    known = patients if patients[0] is not None else None
    report = ClassificationReport(list(class_names)).compute(predictions=p, references=labels, groups=known)
    report["files"] = dict(files)
    if known is not None and (over := report["patients"])["n"] > 1:
        drawn = accuracy_draws((p.argmax(axis=1) == labels)[None], np.asarray(known))
        report["accuracy_interval"] = estimate(drawn[:, 0], over["n"])["interval"]
        wilson = binomtest(round(over["accuracy"] * over["n"]), over["n"]).proportion_ci(method="wilson")
        over["accuracy_interval"] = [float(wilson.low), float(wilson.high)]
    return report


def describe_files(files: Mapping[str, Any]) -> str:
    """Say in a line what share of the listed files was skipped, and why.

    Args:
        files: `listed`, `scored`, `skipped_labels` (label to count), `missing`, `unreadable` and `copies` (counts).

    Example:
        >>> counts = {"listed": 8, "scored": 4, "missing": 1, "unreadable": 1, "copies": 0}
        >>> describe_files(counts | {"skipped_labels": {"notumor": 2}})
        "4 of 8 files scored; 50.0% skipped: 2 labelled 'notumor' (label map), 1 missing, 1 unreadable"
    """
    reasons = [f"{count} labelled {label!r} (label map)" for label, count in files["skipped_labels"].items()]
    reasons += [f"{files[kind]} {kind}" for kind in ("missing", "unreadable") if files[kind]]
    share = 1 - files["scored"] / files["listed"]
    text = f"{files['scored']} of {counted(files['listed'], 'file')} scored"
    text += f"; {share:.1%} skipped: {', '.join(reasons)}" if reasons else "; none skipped"
    again = "is a copy of another and counts" if files["copies"] == 1 else "are copies of others and count"
    return text + (f"; {files['copies']} {again} again" if files["copies"] else "")


def format_report(report: Mapping[str, Any], class_names: Sequence[str], form: str) -> str:
    """Write a report as `json`, `table` (for the terminal) or `markdown`, with whatever metrics it holds.

    Args:
        report: From `ClassificationReport`, with `files` as in `describe_files`.
        class_names: C names in label order.
        form: One of the three.

    Returns:
        The text, without a newline at its end.
    """
    if form == "json":
        return json.dumps(report, indent=2)
    parts = [(unit, part) for unit, part in (("slices", report), ("patients", report.get("patients"))) if part]
    sections = _markdown(parts, class_names) if form == "markdown" else _terminal(parts, class_names)
    if "patients" not in report:
        note = "No patients known: slices of one person are not independent, so there is no interval."
    else:
        note = "Intervals (95%) are over patients, not over slices."
        if report["patients"]["n"] < MIN_GROUPS:
            note += f" Fewer than {MIN_GROUPS} patients allow none for the scores over slices."
    files = describe_files(report["files"])
    closing = [escape_markdown(f"{files}. {note}")] if form == "markdown" else [files, note]
    return "\n".join([*sections, *closing])


def _terminal(parts: Sequence[tuple[str, Mapping[str, Any]]], class_names: Sequence[str]) -> list[str]:
    lines = []
    for unit, part in parts:
        scalars = [f"{title} {value}" for title, value in _scalars(part)]
        lines.append(f"{part['n']} {unit}: {', '.join(scalars[:3])}")
        lines += [f"  {', '.join(scalars[start : start + 4])}" for start in range(3, len(scalars), 4)]
        head, *rows = _class_rows(part, class_names)
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            first, *others = (
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(["", first, *others]))
    return lines


def _markdown(parts: Sequence[tuple[str, Mapping[str, Any]]], class_names: Sequence[str]) -> list[str]:
    scalars = [dict(_scalars(part)) for _, part in parts]
    table = [["", *(unit for unit, _ in parts)], [":--", *["--:"] * len(parts)]]
    table.append(["n", *(f"{part['n']:,}" for _, part in parts)])
    table += [[title, *(values.get(title, "–") for values in scalars)] for title in scalars[0]]
    lines = _pipes(table)
    for unit, part in parts:
        head, *rows = _class_rows(part, class_names)
        escaped = [[escape_markdown(cell) for cell in row] for row in rows]
        lines += ["", f"Classes, over {unit}:", ""]
        lines += _pipes([[escape_markdown(cell) for cell in head], [":--", *["--:"] * (len(head) - 1)], *escaped])
    return [*lines, ""]


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _scalars(part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Title and value of every number of the report but `n`, each with its interval; `patient_…` repeats `patients`."""
    shown = []
    for key, value in part.items():
        if key == "n" or isinstance(value, (dict, list, str, bool)) or key.startswith("patient_"):
            continue
        text = _number(key, value)
        if (interval := part.get(key + _INTERVAL)) is not None:
            text += f" ({_number(key, interval[0])} to {_number(key, interval[1])})"
        shown.append((_title(key), text))
    return shown


def _class_rows(part: Mapping[str, Any], class_names: Sequence[str]) -> list[list[str]]:
    """A head and a row for each class: every metric per class, then the confusion matrix."""
    keys = [key for key in part if key.endswith(_PER_CLASS)]
    head = ["true", *(_title(key.removesuffix(_PER_CLASS)) for key in keys), *(f"→ {name}" for name in class_names)]
    rows = [head]
    for name, counts in zip(class_names, part["confusion_matrix"], strict=True):
        rows.append([name, *(_number(key, part[key][name]) for key in keys), *map(str, counts)])
    return rows


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    percent = any(word in key for word in _PERCENT) and "average_precision" not in key
    return f"{value:.1%}" if percent else f"{value:.3f}"


def _title(key: str) -> str:
    return " ".join(_UPPER.get(word, word) for word in key.split("_"))
