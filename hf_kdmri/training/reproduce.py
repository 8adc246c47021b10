"""Run a run again in a new folder, and compare what came of both."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from accelerate import PartialState

from hf_kdmri.training.environment import environment_differences
from hf_kdmri.training.job import CannotRun, run_job
from hf_kdmri.training.options import RunOptions, parse_options
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import STAGES
from hf_kdmri.whole_files import sha256_of

SCORES = ("accuracy", "macro_f1", "balanced_accuracy", "patient_accuracy", "patient_macro_f1")
_TIMES = re.compile(r"seconds|runtime|_per_second|ms_per_image|^path")  # of the clock, not of the seed


@dataclass(frozen=True)
class Comparison:
    """Two runs of one configuration beside each other.

    Args:
        environment: what differs between the machines, versions and code, one line each.
        data: which splits are not the same images, one line each.
        exact: whether all numbers must be equal.
        tolerance: by how much a number may differ; 0 where `exact`.
        numbers: how many were compared.
        differences: numbers further apart than that, by name: then and now.
        largest: difference of any two numbers.
        weights: by model, whether the weights are the same byte for byte.
    """

    environment: list[str]
    data: list[str]
    exact: bool
    tolerance: float
    numbers: int
    differences: dict[str, tuple[Any, Any]]
    largest: float
    weights: dict[str, bool]


def run_again(
    run: Path, new: Path, *, data_dir: str | None = None, cache_dir: str | None = None
) -> tuple[RunFolder, PartialState]:
    """Run a finished run's configuration in a new folder; what is finished there is taken as it is.

    Args:
        run: folder of the finished run.
        new: folder to run in.
        data_dir: where the published files lie now; default, where they lay then.
        cache_dir: likewise of the prepared data set.

    Raises:
        CannotRun: the run is not finished, used another number of processes, or cannot be run here.
    """
    before = RunFolder(run)
    environment = before.read_environment()
    if before.read_metrics() is None or not (run / "config.yaml").is_file():
        raise CannotRun(f"{run} holds no finished run (no metrics.json); train_kd.py finishes it")
    if environment is None:
        raise CannotRun(f"{run} has no environment.json: it is of an older version; run its config.yaml again by hand")
    if new.resolve() == run.resolve():
        raise CannotRun(f"{new} is the run itself; give another --output_dir")
    arguments = ["--config", str(run / "config.yaml"), "--output_dir", str(new), "--push_to_hub", "false"]
    for name, value in (("data_dir", data_dir), ("cache_dir", cache_dir)):
        arguments += [f"--{name}", value] if value is not None else []
    options = _options(arguments, environment)
    state = PartialState(cpu=options.training.use_cpu)
    if (processes := environment["launches"][-1]["processes"]) != state.num_processes:
        raise CannotRun(
            f"{run} was trained by {processes} processes, here are {state.num_processes}: torchrun --nproc_per_node "
            f"{processes} -m hf_kdmri.cli reproduce {run} --output_dir {new}"
        )
    again = RunFolder(new)
    run_job(options, again, state)
    return again, state


def _options(arguments: list[str], environment: Mapping[str, Any]) -> RunOptions:
    options = parse_options(arguments)
    if options.training.cpu_threads is None:  # sums are rounded in the order in which threads share them
        options.training.cpu_threads = environment["launches"][-1]["threads"]
    options.training.apply_cpu_threads()
    return options


def compare(before: RunFolder, again: RunFolder, *, tolerance: float) -> Comparison:
    """Compare what came of two runs of one configuration.

    Where machine, versions, code and data are the same and the run is deterministic, all metrics, the summary, the
    history (but for times) and the test probabilities must be equal to the last digit. Elsewhere training takes another
    course after the first rounding, and the scores of each model are compared within the tolerance.

    Args:
        before: the run.
        again: the other one.
        tolerance: of a score, absolute, where they need not be equal.

    Raises:
        CannotRun: one of them is not finished.
    """
    environments = []
    for run in (before, again):
        if run.read_metrics() is None or (environment := run.read_environment()) is None:
            raise CannotRun(f"{run.path} is not finished, or is of a version that wrote no environment.json")
        environments.append(environment)
    then, now = environments
    lines = environment_differences(then["launches"][-1], now["launches"][-1])
    for environment, when in ((then, "then"), (now, "now")):
        for launch in environment["launches"][:-1]:  # a run that was interrupted has one for each try
            lines += [
                f"while it ran {when}: {line}" for line in environment_differences(launch, environment["launches"][-1])
            ]
    data = [
        f"the {split} split holds other images or labels: {_count(then, split)} then, {_count(now, split)} now"
        for split in sorted({*then.get("data", {}), *now.get("data", {})})
        if then.get("data", {}).get(split) != now.get("data", {}).get(split)
    ]
    exact = not lines and not data and all(environment["launches"][-1]["deterministic"] for environment in environments)
    collect = _everything if exact else _scores
    numbers = collect(before), collect(again)
    allowed = 0.0 if exact else tolerance
    gaps = {
        name: _gap(numbers[0].get(name), numbers[1].get(name)) for name in sorted(numbers[0].keys() | numbers[1].keys())
    }
    return Comparison(
        environment=lines,
        data=data,
        exact=exact,
        tolerance=allowed,
        numbers=len(gaps),
        differences={
            name: (numbers[0].get(name), numbers[1].get(name)) for name, gap in gaps.items() if not gap <= allowed
        },
        largest=max(gaps.values(), default=0.0),
        weights=_same_weights(before, again),
    )


def _count(environment: Mapping[str, Any], split: str) -> int:
    return environment.get("data", {}).get(split, {}).get("images", 0)


def _everything(run: RunFolder) -> dict[str, Any]:
    """All numbers of a run that the seed decides, by name."""
    metrics = run.read_metrics() or {}
    found = _flat({"models": metrics["models"], "summary": metrics["evaluation"]["summary"]})
    for part in _parts(run):
        prefix, counts = "" if part is run else f"{part.path.name} ", Counter[str]()
        for row in part.read_history():
            counts[row["stage"]] += 1
            found |= _flat(row, f"{prefix}history {row['stage']} row {counts[row['stage']]}")
        for split in ("validation", "test"):
            if (path := part.predictions_file(split)).is_file():
                for column, values in pq.read_table(path).to_pydict().items():
                    found |= _flat(values, f"{prefix}{split} prediction {column}")
    return found


def _scores(run: RunFolder) -> dict[str, Any]:
    """The scores of every model, each a fraction of 0 to 1."""
    models = (run.read_metrics() or {})["models"]
    return {f"models {stage} {score}": row[score] for stage, row in models.items() for score in SCORES if score in row}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, part in items:
        if not _TIMES.search(str(key)):
            flat |= _flat(part, f"{name} {key}".strip())
    return flat


def _gap(one: Any, other: Any) -> float:
    """How far two values are apart: 0 for equal ones, infinity where that is no number."""
    if one == other or (_is_nan(one) and _is_nan(other)):
        return 0.0
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    gap = abs(one - other) if numbers else math.inf
    return math.inf if math.isnan(gap) else gap


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _parts(run: RunFolder) -> list[RunFolder]:
    return [run, *(run.fold(number) for number in run.folds)]


def _same_weights(before: RunFolder, again: RunFolder) -> dict[str, bool]:
    same = {}
    for one, other in zip(_parts(before), _parts(again), strict=True):
        for stage in STAGES:
            paths = [run.model_folder(stage) / "model.safetensors" for run in (one, other)]
            if all(path.is_file() for path in paths):
                name = stage if one is before else f"{one.path.name} {stage}"
                same[name] = sha256_of(paths[0]) == sha256_of(paths[1])
    return same
