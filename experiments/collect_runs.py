#!/usr/bin/env python
"""Add runs to `experiments/runs.json`: what was run, with which code, and what came of it, validation first.

For instance:

    python experiments/collect_runs.py runs/headline/fold-0 runs/probe/plain --name headline-0 plain
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_kdmri.hub.provenance import public_command
from hf_kdmri.training.report.pooling import config_of
from hf_kdmri.training.run_folder import RunFolder

FILE = Path(__file__).with_name("runs.json")
# Of a configuration, what is not the same in all runs; the rest is in the configuration that the command names.
_TOLD = ["fold", "seed", "view_style", "num_train_epochs", "learning_rate", "ema_decay", "logit_weight", "temperature"]
_TOLD += ["geometry_weight", "teacher_architecture", "teacher_image_size", "student_architecture", "student_image_size"]


def main() -> None:
    """Read every run, replace rows of the same name, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one fold each, finished or not")
    parser.add_argument("--name", nargs="+", required=True, help="what to call each")
    parser.add_argument("--note", default="", help="a sentence kept with all of them")
    arguments = parser.parse_args()
    if len(arguments.name) != len(arguments.runs):
        parser.error(f"{len(arguments.runs)} runs, but {len(arguments.name)} names")
    rows = {row["name"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))} if FILE.is_file() else {}
    for run, name in zip(arguments.runs, arguments.name, strict=True):
        rows[name] = {"name": name, **read_run(RunFolder(run)), **({"note": arguments.note} if arguments.note else {})}
    text = json.dumps([rows[name] for name in sorted(rows)], indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"{len(rows)} runs in {FILE}")


def read_run(run: RunFolder) -> dict[str, Any]:
    """One row.

    Returns:
        The options that vary; the command, the code's commit and the machine; by stage, seconds, epochs and the last
        epoch's scores on validation; and, of a finished run, each model's scores on test.
    """
    environment, metrics = run.read_environment(), run.read_metrics()
    if environment is None:
        raise SystemExit(f"{run.path} has no environment.json: it is no run, or one of an older version")
    launch, config = environment["launches"][-1], config_of(run)
    stages = {
        entry["stage"]: {
            "epochs": entry["epoch"],
            "validation_accuracy": entry["eval_accuracy"],
            "validation_macro_f1": entry["eval_macro_f1"],
            "seconds": entry["seconds"],
        }
        for entry in run.read_history()
        if "eval_accuracy" in entry
    }
    row = {
        "options": {name: config[name] for name in _TOLD if config.get(name) is not None},
        "command": public_command(launch["command"]),
        "code": launch["code"],
        "stages": stages,
    }
    if metrics is not None:
        scores = ("accuracy", "macro_f1", "patient_accuracy")
        row["test"] = {stage: {s: model[s] for s in scores} for stage, model in metrics["models"].items()}
    return row


if __name__ == "__main__":
    main()
