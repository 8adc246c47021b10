#!/usr/bin/env python
"""Minutes of a whole run over five folds, stage by stage, of this version and of others.

    git worktree add /tmp/before e7a23d9^    # the version before the memory of a training was kept
    python benchmarks/end_to_end.py --data_dir DIR --teacher_weights FILE --version before=/tmp/before

For each version its `train_kd.py` trains teacher, student alone and distilled student on one fold by the same
configuration, as any user would, but for few epochs; then it tests and reports. The weights λ of the loss are given to
all versions as this version has them, since their defaults have changed. What an epoch after the first takes is
multiplied by the epochs of the configuration; what the first takes longer (start, compiling), and everything that is no
epoch (reading, testing, reporting), is added once; and all of that is multiplied by the folds. So the minutes of five
folds are an extrapolation; the measured seconds are in the JSON file. Versions take turns, `--repeats` times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from timing import shown, spread

from hf_kdmri.distillation import LossOptions
from hf_kdmri.distillation.options import TERMS

HERE = Path(__file__).resolve().parent.parent
STAGES = ("teacher", "baseline", "student")
REST = "reading, testing, reporting"


def main() -> None:
    """Run, extrapolate, print, write."""
    arguments = parse_arguments()
    versions = {"this version": HERE, **dict(arguments.version)}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    for _ in range(arguments.repeats):
        for name, checkout in versions.items():
            rounds[name].append(measured(checkout, arguments))
    result = {
        "versions": {name: summary(rounds[name], arguments) for name in versions},
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "json"},
        "measured": rounds,
    }
    print_table(result, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=HERE / "configs" / "figshare.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--data_dir", required=True, help="folder with the published zips")
    parser.add_argument("--cache_dir", help="where prepared slices are kept; default: read anew in every run")
    parser.add_argument("--teacher_weights", help="ImageNet weights of the teacher")
    parser.add_argument(
        "--version", type=named_path, action="append", default=[], metavar="NAME=FOLDER", help="another checkout"
    )
    parser.add_argument("--epochs", type=int, default=3, help="run of each stage, at least 2 (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="to extrapolate to (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all)")
    parser.add_argument("--repeats", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of train_kd.py, for this version alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(f"--epochs is {arguments.epochs}; the second tells what an epoch takes, so at least 2 are needed")
    return arguments


def named_path(text: str) -> tuple[str, Path]:
    """Split NAME=FOLDER."""
    name, _, folder = text.partition("=")
    if not (Path(folder) / "train_kd.py").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=FOLDER with a train_kd.py in FOLDER")
    return name, Path(folder).resolve()


def measured(checkout: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run: seconds as a whole, and of every epoch of every stage."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(checkout / "train_kd.py"), "--config", str(arguments.config.resolve())]
        command += ["--output_dir", folder, "--data_dir", arguments.data_dir, "--disable_tqdm", "true"]
        command += ["--num_train_epochs", str(arguments.epochs), "--teacher_num_train_epochs", str(arguments.epochs)]
        command += ["--cpu_threads", str(arguments.threads), "--cache_dir", arguments.cache_dir or f"{folder}/cache"]
        command += loss_weights(arguments.config)
        if arguments.teacher_weights:
            command += ["--teacher_weights", arguments.teacher_weights]
        if checkout == HERE:
            command += [f"--{option}" for option in arguments.option]
        # The checkout's package, also where another one is installed.
        environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        begun = time.monotonic()
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        whole = time.monotonic() - begun
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
    return {"whole": whole, "epochs": {stage: epoch_seconds(rows, stage) for stage in STAGES}}


def loss_weights(config: Path) -> list[str]:
    """The λ of every term that all versions know, as this version reads them from a configuration."""
    told = yaml.safe_load(config.read_text(encoding="utf-8"))
    names = [f"{term}_weight" for term in TERMS]
    defaults = {field.name: field.default for field in dataclasses.fields(LossOptions)}
    return [word for name in names for word in (f"--{name}", str(told.get(name, defaults[name])))]


def epoch_seconds(rows: list[dict[str, Any]], stage: str) -> list[float]:
    """Seconds of each epoch, its validation included."""
    ends = [row["seconds"] for row in rows if row["stage"] == stage and "eval_loss" in row]
    return [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]


def summary(rounds: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Minutes of each stage and of all, with their spread over the rounds."""
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    students = config.get("num_train_epochs", 30)
    epochs = {"teacher": config.get("teacher_num_train_epochs", students), "baseline": students, "student": students}
    minutes: dict[str, list[float]] = {name: [] for name in (*STAGES, REST, "all")}
    for told in rounds:
        rest, everything = told["whole"], 0.0
        for stage in STAGES:
            first, *later = told["epochs"][stage]
            each = sum(later) / len(later)
            seconds = arguments.folds * (epochs[stage] * each + max(0.0, first - each))
            minutes[stage].append(seconds / 60)
            everything += seconds
            rest -= first + sum(later)
        minutes[REST].append(arguments.folds * rest / 60)
        minutes["all"].append((everything + arguments.folds * rest) / 60)
    return {"minutes": {name: spread(values) for name, values in minutes.items()}, "epochs": epochs}


def print_table(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The minutes for people."""
    names = list(result["versions"])
    table = Table("", *names, title=f"Minutes of {arguments.folds} folds, from {arguments.epochs} epochs of one")
    for row in (*STAGES, REST, "all"):
        cells = [result["versions"][name]["minutes"][row] for name in names]
        table.add_row(row, *(shown(cell, digits=1) for cell in cells))
    console = Console(width=110)
    console.print(table)
    if arguments.option:
        console.print(f"this version with {', '.join(arguments.option)}", markup=False)


if __name__ == "__main__":
    main()
