#!/usr/bin/env python
"""Which part of the method helps: the losses of `configs/ablation/losses` on the pairs of `configs/ablation/pairs`.

    python benchmarks/ablation.py --data_dir DIR_WITH_THE_ZIPS --teacher_weights tf_efficientnet_lite0.safetensors

Every run is `train_kd.py --config PAIR LOSS --fold F --seed S` in a folder of its own, so one that was interrupted goes
on, and one whose row stands in the results is not repeated. The table is rewritten after each run from all rows.
Nothing is chosen on the test slices by this script: every row is the last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ablation_table import ablation_table

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.training.options import parse_options
from hf_kdmri.whole_files import write_whole

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "ablation"
LABELS = ["meningioma", "glioma", "pituitary"]
PAIRS = ("cnn_to_levit", "levit_to_cnn")
METHODS = (
    "alone",
    "label_smoothing",
    "hinton",
    "fusion",
    "fusion_without_logit",
    "fusion_without_geometry",
    "fusion_without_sample",
    "fusion_without_exit",
    "fusion_on_lesions",
    "untrained_teacher",
    "shuffled",
    "same_family",
)
LOSSES_OF = {"untrained_teacher": "fusion", "same_family": "fusion"}  # the same losses, another teacher


def main() -> None:
    """Run what is missing, fold by fold, and write results and table."""
    arguments = parse_arguments()
    results = Results(arguments.json)
    plan = [
        (pair, method, fold)
        for fold in arguments.folds
        for pair in arguments.pairs
        for method in arguments.methods
        if not results.has(pair, method, fold, arguments.seed)
    ]
    print(f"{len(plan)} runs to do, {len(results.rows)} rows in {results.path}")
    started = time.monotonic()
    for number, (pair, method, fold) in enumerate(plan, start=1):
        if arguments.max_minutes and (time.monotonic() - started) / 60 > arguments.max_minutes:
            print(f"{arguments.max_minutes} minutes are over; {len(plan) - number + 1} runs are left")
            break
        print(f"[{number}/{len(plan)}] {pair}, {method}, fold {fold}", flush=True)
        folder = run_one(pair, method, fold, arguments)
        results.add(row_of(folder, pair, method, fold, arguments.seed))
        arguments.table.write_text(ablation_table(results.rows), encoding="utf-8")
    if results.rows:
        arguments.table.write_text(ablation_table(results.rows), encoding="utf-8")
        print(arguments.table.read_text(encoding="utf-8"))


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with the published zips (default: download)")
    parser.add_argument("--teacher_weights", help="ImageNet weights of the first teacher (default: from the Hub)")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="default: both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1], help="default: 0 1")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="run folders (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "ablation.json", help="default: benchmarks/ablation.json"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "ablation.md", help="default: docs/ablation.md")
    parser.add_argument("--max_minutes", type=float, help="start no further run after this time")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of train_kd.py, last")
    return parser.parse_args()


def run_one(pair: str, method: str, fold: int, arguments: argparse.Namespace) -> Path:
    """Train and test one student, and return its run folder."""
    folder = run_folder(pair, method, fold, arguments)
    losses = CONFIGS / "losses" / f"{LOSSES_OF.get(method, method)}.yaml"
    options = ["--config", str(CONFIGS / "pairs" / f"{pair}.yaml"), str(losses)]
    options += ["--fold", str(fold), "--seed", str(arguments.seed), "--output_dir", str(folder)]
    for name in ("data_dir", "cache_dir"):
        if getattr(arguments, name):
            options += [f"--{name}", getattr(arguments, name)]
    teacher = teacher_of(pair, method, fold, arguments)
    if teacher is not None:
        options += ["--teacher", str(teacher)]
    elif arguments.teacher_weights:
        options += ["--teacher_weights", arguments.teacher_weights]
    else:
        options += ["--teacher_pretrained"]
    options += ["--save_strategy", "no", "--disable_tqdm", "true", *arguments.options]
    parse_options(options)  # a mistake shows now, not in the log
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as stream:
        command = [sys.executable, str(ROOT / "train_kd.py"), *options]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "120"})
    if done.returncode:
        sys.exit(f"train_kd.py failed with {done.returncode}; see {log}")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def run_folder(pair: str, method: str, fold: int, arguments: argparse.Namespace) -> Path:
    """Where a run lies."""
    return arguments.runs / pair / f"{method}-fold{fold}-seed{arguments.seed}"


def teacher_of(pair: str, method: str, fold: int, arguments: argparse.Namespace) -> Path | None:
    """The teacher's folder, made if need be; None where the run trains its own.

    The convolutional teacher is fine-tuned by the first run of cnn_to_levit. The transformer teacher is the student
    that it taught by all losses in cnn_to_levit. Each is the other pair's teacher of the same family.
    """
    cnn = run_folder("cnn_to_levit", "alone", fold, arguments) / "teacher"
    levit = run_folder("cnn_to_levit", "fusion", fold, arguments) / "student"
    own, other = (cnn, levit) if pair == "cnn_to_levit" else (levit, cnn)
    if method == "alone" and pair == "cnn_to_levit":
        return None
    if method == "untrained_teacher":
        architecture = "tf_efficientnet_lite0" if pair == "cnn_to_levit" else "levit_128s"
        folder = arguments.runs / f"untrained-{architecture}"
        if not folder.is_dir():
            model = TeacherForImageClassification.from_timm(architecture, labels=LABELS, image_size=128)
            model.save_pretrained(folder)
        return folder
    teacher = other if method == "same_family" else own
    if not (teacher / "config.json").is_file():
        needed = "alone" if teacher == cnn else "fusion"
        print(f"  first its teacher: cnn_to_levit, {needed}, fold {fold}", flush=True)
        run_one("cnn_to_levit", needed, fold, arguments)
    return teacher


def row_of(folder: Path, pair: str, method: str, fold: int, seed: int) -> dict[str, Any]:
    """What the table needs of a finished run."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    student, teacher = metrics["models"]["student"], metrics["models"]["teacher"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [row["eval_accuracy"] for row in history if row["stage"] == "student" and "eval_accuracy" in row]
    return {
        "pair": pair,
        "method": method,
        "fold": fold,
        "seed": seed,
        "student": student["architecture"],
        "teacher": teacher["architecture"],
        "accuracy": student["accuracy"],
        "macro_f1": student["macro_f1"],
        "patient_accuracy": student["patient_accuracy"],
        "teacher_accuracy": teacher["accuracy"],
        "test_slices": int(np.sum(student["confusion_matrix"])),
        "confusion_matrix": student["confusion_matrix"],
        "validation_accuracy": [round(value, 5) for value in curve],
        "seconds": metrics["run"]["training"]["student"]["seconds"],
        "versions": metrics["run"]["versions"],
        "machine": metrics["run"]["machine"],
    }


class Results:
    """The rows of all finished runs, in one JSON file.

    Args:
        path: the file; made when the first row is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def has(self, pair: str, method: str, fold: int, seed: int) -> bool:
        """Whether a run's row is there."""
        return (pair, method, fold, seed) in {_key(row) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Add or replace a row and write the file."""
        self.rows = sorted([other for other in self.rows if _key(other) != _key(row)] + [row], key=_key)
        text = ",\n".join(json.dumps(row) for row in self.rows)
        write_whole(self.path, f"[\n{text}\n]\n")


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["pair"], row["method"], row["fold"], row["seed"]


if __name__ == "__main__":
    main()
