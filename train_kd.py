#!/usr/bin/env python
"""Teach a small model what a large one knows about brain MRI, from the published files to a finished model folder.

accelerate launch train_kd.py --config configs/demo.yaml
accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --fold 0
accelerate launch train_kd.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import transformers
from accelerate import PartialState

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data import write_phantom_archives
from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.views import ViewDataset, prepare_views
from hf_kdmri.distillation import teacher_column_order
from hf_kdmri.evaluation import print_results
from hf_kdmri.hub import push_folder
from hf_kdmri.models import TimmClassifier
from hf_kdmri.training.options import RunOptions, parse_options
from hf_kdmri.training.outcome import model_row, run_facts, write_card, write_figures
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import STAGES, build_student, build_teacher, predict_probabilities, train_stage

# What a user can mend is said in one line, without a traceback.
USER_ERRORS = (ValueError, OSError)


def main() -> None:
    """Run whatever the run folder does not hold yet."""
    transformers.utils.logging.set_verbosity_error()
    try:
        options = parse_options()
        options.training.apply_cpu_threads()
        state = PartialState(cpu=options.training.use_cpu)
        run = RunFolder(Path(options.training.output_dir or "runs/unnamed"))
        if state.is_main_process:
            run.open(options)
        state.wait_for_everyone()
        if run.read_metrics() is not None:
            state.print(f"{run.path} holds this run, finished; nothing to do.")
            return show_outcome(run, state)
        splits = prepare_data(options, run, state)
        labels = splits["train"].features["label"].names
        models = build_models(options, labels, run)
    except USER_ERRORS as error:
        sys.exit(f"train_kd.py: error: {error}")

    timing = train(options, run, splits, models, state)
    evaluate(options, run, splits, models, timing, state)
    show_outcome(run, state)
    if options.training.push_to_hub and state.is_main_process:
        pushed = push_folder(run.model_folder("student"), options.training.hub_model_id)
        state.print(f"Pushed to {pushed.url}")


def prepare_data(options: RunOptions, run: RunFolder, state: PartialState) -> datasets.DatasetDict:
    """Generate, download or find the slices, and read them into the three splits."""
    data, seed = options.data, options.training.seed
    data_dir, cache_dir = data.data_dir, data.cache_dir
    if data.phantom_slices is not None:
        phantoms = run.path / "phantoms"
        data_dir, cache_dir = str(phantoms), cache_dir or str(run.path / "cache")
        if state.is_main_process and not phantoms.is_dir():
            state.print(f"[1/5] Data: writing {data.phantom_slices} generated phantom slices to {phantoms}")
            write_phantom_archives(phantoms, slices=data.phantom_slices, patients=data.phantom_slices // 5, seed=seed)
        state.wait_for_everyone()
    with state.main_process_first():
        splits = load_slices(
            data_dir=data_dir,
            cache_dir=cache_dir,
            split=data.split,
            fold=data.fold,
            seed=seed,
            max_train_samples=data.max_train_samples,
            max_eval_samples=data.max_eval_samples,
            num_proc=data.preprocessing_num_workers,
        )
    counts = ", ".join(
        f"{name} {len(split)} slices of {len(set(split['patient_group']))} patient groups"
        for name, split in splits.items()
    )
    state.print(f"[1/5] Data: split {data.split}, fold {data.fold}: {counts}")
    return splits


def build_models(options: RunOptions, labels: list[str], run: RunFolder) -> dict[str, TimmClassifier]:
    """Every stage's model: finished ones from the run folder, others as they start."""
    models: dict[str, TimmClassifier] = {}
    if run.has_model("teacher"):
        models["teacher"] = TeacherForImageClassification.from_pretrained(run.model_folder("teacher"))
    elif options.model.teacher is not None:
        models["teacher"] = TeacherForImageClassification.from_pretrained(options.model.teacher)
    else:
        models["teacher"] = build_teacher(options, labels)
    teacher_column_order(labels, models["teacher"].labels)  # refuses other classes now, not after hours
    for stage in ("baseline", "student"):
        if stage == "student" or options.model.baseline:
            if run.has_model(stage):
                models[stage] = StudentForImageClassification.from_pretrained(run.model_folder(stage))
            else:
                models[stage] = build_student(options, labels)
    return models


def train(
    options: RunOptions,
    run: RunFolder,
    splits: datasets.DatasetDict,
    models: dict[str, TimmClassifier],
    state: PartialState,
) -> dict[str, dict[str, float]]:
    """Train each model that is not finished, and return the seconds it took."""
    timing: dict[str, dict[str, float]] = {}
    for number, stage in enumerate(STAGES, start=2):
        if stage not in models:
            state.print(f"[{number}/5] {stage}: switched off")
        elif run.has_model(stage):
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
            # One view serves both models, so it has the larger of their sizes.
            size = max(model.image_size, teacher.image_size if teacher is not None else 0)
            views = {"train": views_of(splits["train"], size, options, state)}
            views["validation"] = views_of(splits["validation"], model.image_size, options, state)
            timing[stage] = train_stage(stage, model, teacher, views, options, run)
    return timing


def evaluate(
    options: RunOptions, run: RunFolder, splits: datasets.DatasetDict, models: dict[str, TimmClassifier],
    timing: dict[str, dict[str, float]], state: PartialState,
) -> None:  # fmt: skip
    """Test every model once, on slices of patients it never saw, and write figures, card and metrics."""
    state.print(f"[5/5] Testing on {len(splits['test'])} slices")
    labels, rows, probabilities = splits["test"].features["label"].names, {}, {}
    for stage, model in models.items():
        views = views_of(splits["test"], model.image_size, options, state)
        columns = teacher_column_order(labels, model.labels)
        probabilities[stage] = predict_probabilities(model, views, options.training)[:, columns]
        if state.is_main_process:
            rows[stage] = model_row(stage, model, probabilities[stage], splits["test"], labels)
    if state.is_main_process:
        figures = write_figures(run, options, list(rows.values()), splits, probabilities["student"], labels)
        write_card(run, options, list(rows.values()), splits)
        facts = run_facts(options, splits, timing)
        run.write_metrics({"run": {**facts, "figures": figures}, "models": rows})
    state.wait_for_everyone()


def views_of(split: datasets.Dataset, size: int, options: RunOptions, state: PartialState) -> ViewDataset:
    """Resize a split once; every process reads the same file."""
    with state.main_process_first():
        return prepare_views(split, size, num_proc=options.data.preprocessing_num_workers)


def show_outcome(run: RunFolder, state: PartialState) -> None:
    """Print the table, and where everything lies."""
    metrics = run.read_metrics()
    if state.is_main_process and metrics is not None:
        facts = metrics["run"]
        print_results(
            list(metrics["models"].values()),
            title=f"Test on {facts['source']}, split {facts['split']}, fold {facts['fold']}",
        )
        print("Figures:", *facts["figures"], sep="\n  ")
        print(f"Student: {run.model_folder('student')}  (model card: README.md; any transformers pipeline loads it)")


if __name__ == "__main__":
    main()
