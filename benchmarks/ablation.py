#!/usr/bin/env python
"""Which part of the method helps: the losses of `configs/ablation/losses` on the pairs of `configs/ablation/pairs`.

    python benchmarks/ablation.py --data_dir DIR_WITH_THE_ZIPS --teacher_weights tf_efficientnet_lite0.safetensors

Every run is `train_kd.py --config PAIR LOSS --fold F --seed S` in a folder of its own, so one that was interrupted goes
on, and one whose row stands in the results is not repeated. The table is rewritten after each run from all rows. The
convolutional teacher is fine-tuned once for each fold; the transformer teacher is the student that it taught by its
logits. What a teacher says of the views is kept on disk, so that all losses share it. Nothing is chosen on the test
slices by this script: every row is the last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ablation_table import ablation_table

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.training.options import parse_options
from hf_kdmri.whole_files import write_whole

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "ablation"
LABELS = ["meningioma", "glioma", "pituitary"]
CNN = "tf_efficientnet_lite0"
TO_TRANSFORMER, TO_CNN = "cnn_to_transformer", "transformer_to_cnn"
PAIRS = (TO_TRANSFORMER, TO_CNN)
METHODS = (
    "alone",
    "hinton",
    "fusion",
    "label_smoothing",
    "fusion_without_logit",
    "fusion_without_geometry",
    "fusion_without_sample",
    "fusion_without_exit",
    "fusion_on_lesions",
    "untrained_teacher",
    "shuffled",
    "same_family",
)
VIEWS = f"bicubic, {RandomViews().moved:.0%} of them moved"
WITHOUT_TEACHER = ("alone", "label_smoothing")
LOSSES_OF = {"untrained_teacher": "fusion", "same_family": "fusion"}  # the same losses, another teacher


@dataclass(frozen=True)
class Run:
    """One student of the table."""

    pair: str
    method: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, below the pair's."""
        return f"{self.method}-fold{self.fold}-seed{self.seed}"


def main() -> None:
    """Run what is missing and write results and table."""
    arguments = parse_arguments()
    results = Results(arguments.json)
    if arguments.max_minutes and (other := {row["views"] for row in results.rows} - {VIEWS}):
        sys.exit(
            f"the rows of {arguments.json} were trained on other views ({', '.join(other)}; now {VIEWS}): give --json"
        )
    wanted = [
        Run(pair, method, fold, arguments.seed)
        for fold in arguments.folds
        for pair in arguments.pairs
        for method in arguments.methods
    ]
    plan = [run for run in wanted if arguments.max_minutes and not results.has(run)]
    print(f"{len(plan)} runs to do, {len(results.rows)} rows in {results.path}")
    Ablation(arguments, results).do(plan)
    if results.rows:
        results.write_table(arguments.table)
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
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="run folders (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "ablation.json", help="default: benchmarks/ablation.json"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "ablation.md", help="default: docs/ablation.md")
    parser.add_argument(
        "--max_minutes",
        type=float,
        default=float("inf"),
        help="start no further run after this time; 0 rewrites the table",
    )
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of train_kd.py, last")
    return parser.parse_args()


class TimeIsOver(Exception):
    """A run that was not started."""


class Ablation:
    """The runs, several at a time; a run that needs another one's student starts after it."""

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        self.arguments, self.results = arguments, results
        self.started = time.monotonic()
        self.pool = ThreadPoolExecutor(arguments.jobs)
        self.tasks: dict[object, Future] = {}
        self.lock = threading.Lock()

    def do(self, plan: list[Run]) -> None:
        """Do all runs and what they need; the first that fails ends it."""
        for run in plan:
            self._submit(run)
        left = 0
        try:
            for name, task in list(self.tasks.items()):
                try:
                    task.result()
                except TimeIsOver:
                    left += name in plan
        finally:
            self.pool.shutdown(cancel_futures=True)
        if left:
            print(f"{self.arguments.max_minutes} minutes are over; {left} runs are left")

    def _submit(self, run: Run) -> Future:
        # A task is queued after those it waits for, so what a worker waits for has always begun.
        if run not in self.tasks:
            needed = self._teacher(run)
            self.tasks[run] = self.pool.submit(self._train_student, run, *needed)
        return self.tasks[run]

    def _teacher(self, run: Run) -> tuple[Path, Future | None]:
        """The folder of a run's teacher, and what has to be done first for it to be there.

        A run without a teacher is given the convolutional one, which is at hand, and does not ask it.
        """
        of_cnn = run.pair == TO_TRANSFORMER
        if run.method == "untrained_teacher":
            architecture = CNN if of_cnn else _transformer()
            folder = self.arguments.runs / "teachers" / f"untrained-{architecture}"
            size = (
                _image_size("teacher.yaml", "teacher")
                if of_cnn
                else _image_size(f"pairs/{TO_TRANSFORMER}.yaml", "student")
            )
            return folder, self._once(folder, lambda: _save_untrained(architecture, size, folder))
        if run.method in WITHOUT_TEACHER or of_cnn != (run.method == "same_family"):
            folder = self.arguments.runs / "teachers" / f"{CNN}-fold{run.fold}-seed{run.seed}"
            return folder / "teacher", self._once(folder / "teacher", lambda: self._train_teacher(run, folder))
        # the student that the convolutional network taught by its logits
        first = Run(TO_TRANSFORMER, "hinton", run.fold, run.seed)
        student = self._folder(first) / "student"
        return student, None if (student / "config.json").is_file() else self._submit(first)

    def _once(self, folder: Path, make: Callable[[], None]) -> Future | None:
        if (folder / "config.json").is_file():
            return None
        if folder not in self.tasks:
            self.tasks[folder] = self.pool.submit(make)
        return self.tasks[folder]

    def _train_teacher(self, run: Run, folder: Path) -> None:
        weights = self.arguments.teacher_weights
        options = ["--config", str(CONFIGS / "teacher.yaml"), "--fold", str(run.fold), "--seed", str(run.seed)]
        options += ["--teacher_weights", weights] if weights else ["--teacher_pretrained"]
        self._train(folder, options, f"teacher {CNN}, fold {run.fold}")

    def _train_student(self, run: Run, teacher: Path, first: Future | None) -> None:
        if first is not None:
            first.result()
        folder = self._folder(run)
        losses = CONFIGS / "losses" / f"{LOSSES_OF.get(run.method, run.method)}.yaml"
        options = ["--config", str(CONFIGS / "pairs" / f"{run.pair}.yaml"), str(losses)]
        options += ["--fold", str(run.fold), "--seed", str(run.seed), "--teacher", str(teacher)]
        if run.method not in WITHOUT_TEACHER:
            cache = "-".join(teacher.relative_to(self.arguments.runs).parts) + f"-on-fold{run.fold}"
            options += ["--teacher_cache", str(self.arguments.runs / "caches" / cache)]
        self._train(folder, options, f"{run.pair}, {run.method}, fold {run.fold}")
        with self.lock:
            self.results.add(row_of(folder, run))
            self.results.write_table(self.arguments.table)

    def _folder(self, run: Run) -> Path:
        return self.arguments.runs / run.pair / run.name

    def _train(self, folder: Path, options: list[str], what: str) -> None:
        if (time.monotonic() - self.started) / 60 > self.arguments.max_minutes:
            raise TimeIsOver
        options += ["--output_dir", str(folder), "--save_strategy", "no", "--disable_tqdm", "true"]
        options += ["--cpu_threads", str(max(1, (os.cpu_count() or 1) // self.arguments.jobs))]
        for name in ("data_dir", "cache_dir"):
            if getattr(self.arguments, name):
                options += [f"--{name}", getattr(self.arguments, name)]
        options += self.arguments.options
        parse_options(options)  # a mistake shows now, not in the log
        log = folder.with_name(f"{folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(log, "w", encoding="utf-8") as stream:
            command = [sys.executable, str(ROOT / "train_kd.py"), *options]
            environment = {**os.environ, "COLUMNS": "120", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            raise RuntimeError(f"train_kd.py failed with {done.returncode}; see {log}")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def _transformer() -> str:
    pair = yaml.safe_load((CONFIGS / "pairs" / f"{TO_TRANSFORMER}.yaml").read_text(encoding="utf-8"))
    return pair["student_architecture"]


def _image_size(config: str, model: str) -> int:
    return yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))[f"{model}_image_size"]


def _save_untrained(architecture: str, image_size: int, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TeacherForImageClassification.from_timm(architecture, labels=LABELS, image_size=image_size)
    model.save_pretrained(folder)


def row_of(folder: Path, run: Run) -> dict[str, Any]:
    """What the table needs of a finished run."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    student, teacher = metrics["models"]["student"], metrics["models"]["teacher"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [row["eval_accuracy"] for row in history if row["stage"] == "student" and "eval_accuracy" in row]
    return {
        "pair": run.pair,
        "method": run.method,
        "fold": run.fold,
        "seed": run.seed,
        "student": student["architecture"],
        "teacher": teacher["architecture"],
        "accuracy": student["accuracy"],
        "macro_f1": student["macro_f1"],
        "patient_accuracy": student["patient_accuracy"],
        "teacher_accuracy": teacher["accuracy"],
        "confusion_matrix": student["confusion_matrix"],
        "views": VIEWS,
        "validation_accuracy": [round(value, 5) for value in curve],
        "seconds": metrics["run"]["training"]["student"]["seconds"],
        "versions": metrics["run"]["versions"],
        "machine": metrics["run"]["machine"],
    }


class Results:
    """The rows of all finished runs, one JSON object per line in a list.

    Args:
        path: a JSON file; made when the first row is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def has(self, run: Run) -> bool:
        """Whether a run's row is there."""
        return (run.pair, run.method, run.fold, run.seed) in {_key(row) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Add or replace a row and write the file."""
        self.rows = sorted([other for other in self.rows if _key(other) != _key(row)] + [row], key=_key)
        text = ",\n".join(json.dumps(row) for row in self.rows)
        write_whole(self.path, f"[\n{text}\n]\n")

    def write_table(self, path: Path) -> None:
        """Write the table of all rows as Markdown."""
        source = self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name
        write_whole(path, ablation_table(self.rows, source=source, views=VIEWS))


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["pair"], row["method"], row["fold"], row["seed"]


if __name__ == "__main__":
    main()
