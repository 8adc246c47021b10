"""`kdmri report` and `kdmri compare`: commands on the folders that `train_kd.py` leaves."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import USAGE, stop

REPORT_EXAMPLE = "kdmri report runs/figshare"
COMPARE_EXAMPLE = "kdmri compare runs/hinton runs/fusion --format json"


class ComparisonFormat(str, Enum):
    """How a comparison is printed."""

    markdown = "markdown"
    json = "json"


class ComparedModel(str, Enum):
    """Which model of each run is compared."""

    student = "student"
    baseline = "baseline"
    teacher = "teacher"


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, over one fold or several.")],
) -> None:
    """Make report.html, figures, tables and metrics.json again from what a finished run left on disk."""
    from hf_kdmri.training.job import CannotRun, report_again

    try:
        page = report_again(run)
    except (CannotRun, ValueError, OSError) as error:
        stop(error, USAGE)
    typer.echo(page)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders, or files of predictions.")],
    model: Annotated[ComparedModel, typer.Option(help="Which model of each run.")] = ComparedModel.student,
    common: Annotated[bool, typer.Option("--common", help="Compare on the images that all runs tested.")] = False,
    leaking: Annotated[
        bool, typer.Option("--leaking", help="Admit splits that put one patient into several folds.")
    ] = False,
    format: Annotated[ComparisonFormat, typer.Option(help="How to print.")] = ComparisonFormat.markdown,
    seed: Annotated[int, typer.Option(help="Of the draws and permutations.")] = 0,
) -> None:
    """Put runs side by side, each tested against the first on the same images."""
    from hf_kdmri.evaluation.statistics.compare import compare_runs, compare_table
    from hf_kdmri.evaluation.statistics.predictions import Predictions

    try:
        loaded = {}
        for run in runs:
            path = run / "predictions.parquet" if run.is_dir() else run
            if not path.is_file():
                raise ValueError(f"there is no {path}; give the folder of a finished run, or its predictions.parquet")
            loaded[str(run)] = Predictions.read(path, disjoint_groups=not leaking)
        told = compare_runs(loaded, model=model.value, common=common, seed=seed)
    except (ValueError, OSError) as error:
        stop(str(error).replace("pass disjoint_groups=False", "give --leaking"), USAGE)
    typer.echo(json.dumps(told, indent=2) if format is ComparisonFormat.json else compare_table(told))
