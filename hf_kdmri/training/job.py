"""The job: one fold from data to finished models and their test, or several and what is pooled over them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_kdmri.hub_names import check_model_name
from hf_kdmri.models import TimmClassifier
from hf_kdmri.training.compiling import check_compiler
from hf_kdmri.training.environment import data_fingerprint, describe_environment
from hf_kdmri.training.inputs import RunData, prepare_data, training_views, views_of
from hf_kdmri.training.memory import keep_memory
from hf_kdmri.training.options import OptionError, RunOptions
from hf_kdmri.training.reliability.checkpoints import CheckpointError
from hf_kdmri.training.reliability.data_workers import DataWorkerError
from hf_kdmri.training.reliability.numbers import NotFiniteError
from hf_kdmri.training.report.outcome import (
    machine,
    model_row,
    prepare_student_for_the_hub,
    run_command,
    run_facts,
    versions,
    write_figures,
)
from hf_kdmri.training.report.page import write_report
from hf_kdmri.training.report.pooling import SCHEMA, FinishedFold, evaluate_folds, finished_folds, pool, pooled_rows
from hf_kdmri.training.report.student_card import card_facts, write_card
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import STAGES, build_models, train_stage
from hf_kdmri.training.teacher_cache import TeacherCacheError
from hf_kdmri.training.testing import check_class_order, corrupt_images, look_where, predict_splits


class CannotRun(Exception):
    """What a user can mend, in one line: options, data, models or a teacher cache that cannot be used."""


@contextmanager
def _mendable(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "; make room there, and the same command goes on from what is kept" if full else ""
        raise CannotRun(f"{error}{way_out}") from error


def run_job(options: RunOptions, run: RunFolder, state: PartialState) -> None:
    """Do whatever the run folder does not hold yet: one run, or every fold that `folds` names and the pooled report.

    Raises:
        CannotRun: options, data, models or a teacher cache that cannot be used; the message says why.
    """
    if options.training.use_cpu and options.training.keep_memory:
        keep_memory()
    numbers = options.data.fold_numbers()
    if numbers is None:
        run_fold(options, run, state)
        return
    with _mendable(ValueError, OSError):
        parts = {number: options.of_fold(number) for number in numbers}
        if state.is_main_process:
            run.open(options)
    state.wait_for_everyone()
    finished = run.read_metrics()
    if finished is not None and finished["run"].get("folds") == numbers:
        state.print(f"{run.path} holds this run, finished; nothing to do.")
        return
    if state.is_main_process:
        run.add_launch(_environment(options))
    for number, part in parts.items():
        state.print(f"\nFold {number} of {', '.join(map(str, numbers))}")
        run_fold(part, run.fold(number), state, alone=False)
    if state.is_main_process and not options.model.teacher_only:
        folds = finished_folds(run, numbers)
        _finish(run, folds, _pooled_facts(folds, numbers))
    state.wait_for_everyone()


def run_fold(options: RunOptions, run: RunFolder, state: PartialState, *, alone: bool = True) -> None:
    """Train and test one fold, unless its folder holds it.

    Args:
        options: of this fold.
        run: its folder.
        state: of the processes.
        alone: also write the report; over several folds it is written once, for all.
    """
    with _mendable(ValueError, OSError):
        if options.training.compile_teacher:
            check_compiler(options.training.device)  # now, not after a teacher was trained
        if state.is_main_process:
            run.open(options)
        state.wait_for_everyone()
        if run.read_metrics() is not None:
            state.print(f"{run.path} holds this run, finished; nothing to do.")
            return
        if options.model.teacher is not None and not run.has_model("teacher"):
            check_model_name(options.model.teacher)  # now, not after the data are prepared
        data = prepare_data(options, run, state)
        if state.is_main_process:
            fingerprint = data_fingerprint(data.splits)
            _refuse_other_data(run, fingerprint)
            run.add_launch(_environment(options), fingerprint)
        if not alone and data.own is not None and "test" not in data.own.drawn:
            raise ValueError(
                "--folds needs a test split that is dealt here, but the set brings its own; give --group_column to "
                "deal anew, or leave --folds out"
            )
        models = build_models(options, data.labels, run)
        check_class_order(models, data, options)
    train(options, run, data, models, state)
    if options.model.teacher_only:
        state.print(f"Teacher: {run.model_folder('teacher')}  (give it as --teacher to other runs)")
    else:
        evaluate(options, run, data, models, state, alone=alone)


def _refuse_other_data(run: RunFolder, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than the run was begun with.

    Its finished models may have trained on some that are tested on now.

    Raises:
        OptionError: the images, their classes or their patients are others.
    """
    then = (run.read_environment() or {}).get("data")
    if then is None or then == now:
        return
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    counts = ", ".join(
        f"{name} {then.get(name, {}).get('images', 0)} images then and {now.get(name, {}).get('images', 0)} now"
        for name in changed
    )
    raise OptionError(
        f"{run.path} was begun with other data ({counts}; images, classes or patients differ): give it that "
        "data again, choose another --output_dir, or begin anew with --overwrite_output_dir"
    )


def _environment(options: RunOptions) -> dict[str, Any]:
    return describe_environment(full_determinism=options.training.full_determinism)


def train(
    options: RunOptions,
    run: RunFolder,
    data: RunData,
    models: dict[str, TimmClassifier],
    state: PartialState,
) -> None:
    """Train each model that is not finished."""
    finished = {stage: run.has_model(stage) for stage in STAGES}
    state.wait_for_everyone()  # every process has looked before one of them writes
    for number, stage in enumerate(STAGES, start=2):
        if stage not in models:
            state.print(f"[{number}/5] {stage}: switched off")
        elif finished[stage]:
            state.print(f"[{number}/5] {stage}: finished earlier, taken from {run.model_folder(stage)}")
        elif stage == "teacher" and options.model.teacher is not None:
            state.print(f"[{number}/5] teacher: taken from {options.model.teacher}")
            if state.is_main_process:
                run.save_model("teacher", models["teacher"])
            state.wait_for_everyone()
        else:
            model, teacher = models[stage], models["teacher"] if stage == "student" else None
            taught = f", taught by {teacher.config.architecture}" if teacher is not None else ""
            state.print(f"[{number}/5] {stage}: training {model.config.architecture}{taught}")
            # One view serves both models, so it has the larger of their sizes; also where the student is alone, because
            # views drawn larger and scaled down are of another sharpness, and nothing but the teacher shall differ.
            size = model.image_size if stage == "teacher" else max(model.image_size, models["teacher"].image_size)
            with _mendable(OptionError, TeacherCacheError, NotFiniteError, CheckpointError, DataWorkerError):
                views = (
                    training_views(data, size, options, state),
                    views_of(data.splits["validation"], model.image_size, options, state),
                )
                train_stage(stage, model, teacher, *views, options, run, image_names=data.training_names())


def evaluate(
    options: RunOptions,
    run: RunFolder,
    data: RunData,
    models: dict[str, TimmClassifier],
    state: PartialState,
    *,
    alone: bool,
) -> None:
    """Test every model once, on images it never saw, and write predictions, figures, card, metrics and the report."""
    test = data.splits["test"]
    state.print(f"[5/5] Testing on {len(test)} {data.unit}")
    with _mendable(DataWorkerError):
        predictions = predict_splits(models, data, options, run, state)
    if state.is_main_process:
        rows = {
            stage: model_row(stage, model, predictions.probabilities[stage], data, run.model_folder(stage))
            for stage, model in models.items()
        }
        write_figures(run, options, list(rows.values()), data, predictions.probabilities["student"])
        look_where(models, data, predictions, options, run)
        corrupt_images(models, data, options, run)
        facts = {**run_facts(run, options, data), "card": card_facts(options, data)}
        prepare_student_for_the_hub(run, options, data, facts, models)
        fold = FinishedFold(run, facts, rows)
        if alone:
            _finish(run, [fold], fold.facts)
        else:
            run.write_metrics({"schema": SCHEMA, "run": fold.facts, "models": rows})
    state.wait_for_everyone()


def report_again(path: Path) -> Path:
    """Make the report of a finished run anew from what lies on disk.

    Raises:
        CannotRun: the folder holds no finished run, or one from before predictions were kept.
    """
    run = RunFolder(path)
    metrics = run.read_metrics()
    if metrics is None:
        raise CannotRun(f"{path} holds no finished run (no metrics.json); train_kd.py finishes it")
    with _mendable(ValueError, OSError):
        numbers = metrics["run"].get("folds")
        if numbers is None:
            folds = [FinishedFold(run, metrics["run"], metrics["models"])]
        else:
            folds = finished_folds(run, numbers)
        _finish(run, folds, metrics["run"])
    return path / "report.html"


def _finish(run: RunFolder, folds: Sequence[FinishedFold], facts: Mapping[str, Any]) -> None:
    """Pool the folds, write predictions, report and cards, and last `metrics.json`, which marks the run as finished."""
    predictions = pool(folds)
    if folds[0].run.path != run.path:
        predictions.write(run.predictions_file("test"))
    evaluation = evaluate_folds(folds, predictions)
    rows = folds[0].rows if len(folds) == 1 else pooled_rows(folds, evaluation["summary"])
    write_report(run, folds, predictions, evaluation, rows, facts)
    pooled = facts.get("folds") or ()
    for fold in folds:
        write_card(fold, rows, evaluation, pooled_folds=pooled)
    figures = sorted(str(path) for path in (run.path / "figures").glob("*.png"))
    run.write_metrics(
        {"schema": SCHEMA, "run": {**facts, "figures": figures}, "models": rows, "evaluation": evaluation}
    )


def _pooled_facts(folds: Sequence[FinishedFold], numbers: Sequence[int]) -> dict[str, Any]:
    first = folds[0].facts
    return {
        **{
            key: first.get(key) for key in ("source", "split", "seed", "phantom", "classes", "own_data", "has_patients")
        },
        "command": run_command(),
        "fold": None,
        "folds": list(numbers),
        "slices": {"test": sum(fold.facts["slices"]["test"] for fold in folds)},
        "versions": versions(),
        "machine": machine(),
    }
