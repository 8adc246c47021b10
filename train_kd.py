#!/usr/bin/env python
"""Teach a small model what a large one knows of brain MRI, or of images of yours: from files to a model folder.

accelerate launch train_kd.py --config configs/demo.yaml
accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --fold 0
accelerate launch train_kd.py --dataset_name MY_FOLDER --group_column patient --output_dir runs/mine
accelerate launch train_kd.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from accelerate import PartialState

from hf_kdmri.distillation import teacher_column_order
from hf_kdmri.evaluation import print_results
from hf_kdmri.hub import PublishError, push_folder
from hf_kdmri.models import TimmClassifier
from hf_kdmri.training.inputs import RunData, prepare_data, views_of
from hf_kdmri.training.options import RunOptions, parse_options
from hf_kdmri.training.outcome import model_row, results_title, run_facts, write_card, write_figures
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import STAGES, build_models, predict_probabilities, train_stage

# What a user can mend is said in one line, without a traceback.
USER_ERRORS = (ValueError, OSError)


def main() -> None:
    """Run whatever the run folder does not hold yet."""
    try:
        options = parse_options()
        # After the options: transformers takes a quiet logger for a wish to have no progress bars.
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()  # its own, for small files; training keeps its bar
        options.training.apply_cpu_threads()
        state = PartialState(cpu=options.training.use_cpu)
        run = RunFolder(Path(options.training.output_dir or "runs/unnamed"))
        if state.is_main_process:
            run.open(options)
        state.wait_for_everyone()
        finished = run.read_metrics() is not None
        if not finished:
            data = prepare_data(options, run, state)
            models = build_models(options, data.labels, run)
    except USER_ERRORS as error:
        sys.exit(f"train_kd.py: error: {error}")

    if finished:
        state.print(f"{run.path} holds this run, finished; nothing to do.")
    else:
        train(options, run, data, models, state)
        if options.model.teacher_only:
            state.print(f"Teacher: {run.model_folder('teacher')}  (give it as --teacher to other runs)")
            return
        evaluate(options, run, data, models, state)
    show_outcome(run, state)
    if options.training.push_to_hub and state.is_main_process:
        push(run, options)


def train(
    options: RunOptions,
    run: RunFolder,
    data: RunData,
    models: dict[str, TimmClassifier],
    state: PartialState,
) -> None:
    """Train each model that is not finished."""
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
            views = {"train": views_of(data.splits["train"], size, options, state, for_training=True)}
            views["validation"] = views_of(data.splits["validation"], model.image_size, options, state)
            train_stage(stage, model, teacher, views, options, run)


def evaluate(
    options: RunOptions,
    run: RunFolder,
    data: RunData,
    models: dict[str, TimmClassifier],
    state: PartialState,
) -> None:
    """Test every model once, on images it never saw, and write figures, card and metrics."""
    test, rows, probabilities = data.splits["test"], {}, {}
    state.print(f"[5/5] Testing on {len(test)} {data.unit}")
    for stage, model in models.items():
        views = views_of(test, model.image_size, options, state)
        columns = teacher_column_order(data.labels, model.labels)
        probabilities[stage] = predict_probabilities(model, views, options.training)[:, columns]
        if state.is_main_process:
            rows[stage] = model_row(stage, model, probabilities[stage], data)
    if state.is_main_process:
        figures = write_figures(run, options, list(rows.values()), data, probabilities["student"])
        write_card(run, options, list(rows.values()), data)
        facts = run_facts(run, options, data)
        run.write_metrics({"run": {**facts, "figures": figures}, "models": rows})
    state.wait_for_everyone()


def push(run: RunFolder, options: RunOptions) -> None:
    """Send the finished student folder to the Hub."""
    try:
        pushed = push_folder(
            run.model_folder("student"),
            options.training.hub_model_id or "",
            private=bool(options.training.hub_private_repo),
        )
    except (PublishError, ValueError) as error:
        sys.exit(f"train_kd.py: the run is finished in {run.path}, but not pushed: {error}")
    print(f"Pushed to {pushed.url}")


def show_outcome(run: RunFolder, state: PartialState) -> None:
    """Print the table, and where everything lies."""
    metrics = run.read_metrics()
    if state.is_main_process and metrics is not None:
        facts = metrics["run"]
        print_results(list(metrics["models"].values()), title=results_title(facts))
        print("Figures:", *facts["figures"], sep="\n  ")
        print(f"Student: {run.model_folder('student')}  (model card: README.md; any transformers pipeline loads it)")


if __name__ == "__main__":
    main()
