"""What a finished run leaves: one row per model, figures, a model card."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_kdmri.evaluation import (
    ClassificationReport,
    count_parameters,
    milliseconds_per_image,
    plot_comparison,
    plot_prediction_grid,
    plot_training_curves,
)
from hf_kdmri.hub import StudentCardFacts, write_student_card
from hf_kdmri.models import TimmClassifier
from hf_kdmri.training.options import RunOptions
from hf_kdmri.training.run_folder import RunFolder

MODEL_NAMES = {"teacher": "Teacher", "baseline": "Student alone", "student": "Distilled student"}
_VERSIONED = ("torch", "transformers", "timm", "datasets", "accelerate")
_GRID_IMAGES = 20
_REENCODED = (
    "The slices of this run were 8-bit re-encodings of the published 16-bit files, with masks drawn from the published "
    "borders; retrain on the published files before you compare with results on them."
)


def model_row(
    stage: str, model: TimmClassifier, probabilities: np.ndarray, test: datasets.Dataset, labels: Sequence[str]
) -> dict[str, Any]:
    """Everything a table says of one model.

    Args:
        stage: "teacher", "baseline" or "student".
        model: measured for size and latency on its present device, one image at a time.
        probabilities: (N, C), columns in the order of `labels`.
        test: the N test slices, with `label` and `patient_group`.
        labels: class names.

    Returns:
        A row as `results_table` takes it, with the whole `ClassificationReport`.
    """
    report = ClassificationReport(labels).compute(
        predictions=probabilities, references=test["label"], groups=test["patient_group"]
    )
    return {
        "model": MODEL_NAMES[stage],
        "architecture": model.config.architecture,
        "image_size": model.image_size,
        "parameters": count_parameters(model),
        "ms_per_image": milliseconds_per_image(model, model.image_size),
        **report,
    }


def write_figures(
    run: RunFolder, options: RunOptions, rows: Sequence[Mapping[str, Any]], splits: datasets.DatasetDict,
    probabilities: np.ndarray, labels: Sequence[str],
) -> list[str]:  # fmt: skip
    """Write curves, prediction grid and comparison as PNG and SVG.

    Args:
        run: the run's folder.
        options: of the run.
        rows: one per model.
        splits: the data set.
        probabilities: of the distilled student on the test split, (N, C).
        labels: class names.

    Returns:
        Paths of the PNG files.
    """
    folder, test = run.path / "figures", splits["test"]
    split = f"{source_of(options, splits)}, split {options.data.split}, fold {options.data.fold}"
    chosen = np.sort(np.random.default_rng(options.training.seed).permutation(len(test))[:_GRID_IMAGES])
    shown = test.select(chosen)
    curves = plot_training_curves(
        run.read_history(),
        folder / "training_curves",
        subtitle=f"{split}; {len(splits['train'])} training and {len(splits['validation'])} validation slices",
    )
    grid = plot_prediction_grid(
        shown["image"],
        shown["label"],
        probabilities[chosen].argmax(1),
        probabilities[chosen],
        labels,
        folder / "predictions",
        subtitle=f"{split}; {len(chosen)} of {len(test)} test slices, drawn at random",
    )
    comparison = plot_comparison(rows, folder / "comparison", subtitle=f"{split}, test")
    return [str(paths[0]) for paths in (curves, grid, comparison)]


def write_card(
    run: RunFolder, options: RunOptions, rows: Sequence[Mapping[str, Any]], splits: datasets.DatasetDict
) -> None:
    """Write the student's model card from the run's own numbers."""
    training = options.training
    facts = StudentCardFacts(
        model_name=f"kdmri-{options.model.student_architecture}",
        results=rows,
        teacher=next((row["architecture"] for row in rows if row["model"] == MODEL_NAMES["teacher"]), "none"),
        losses={
            "cross-entropy": "weight 1",
            "Hinton distillation": f"weight {training.logit_weight}, temperature {training.temperature}",
            "fused spatial similarity": f"weight {training.geometry_weight}, grid {training.geometry_grid}",
        },
        split=options.data.split,
        fold=options.data.fold,
        seed=training.seed,
        training_command=command(public=True),
        versions=versions(),
        machine=machine(),
        phantom=options.data.phantom_slices is not None,
        data_note=_REENCODED if _is_8_bit(splits) else "",
        repo_id=training.hub_model_id,
    )
    write_student_card(run.model_folder("student"), facts)


def run_facts(run: RunFolder, options: RunOptions, splits: datasets.DatasetDict) -> dict[str, Any]:
    """What else `metrics.json` should say: the command, the data, the machine."""
    return {
        "command": command(),
        "source": source_of(options, splits),
        "split": options.data.split,
        "fold": options.data.fold,
        "seed": options.training.seed,
        "phantom": options.data.phantom_slices is not None,
        "slices": {name: len(split) for name, split in splits.items()},
        "patient_groups": {name: len(set(split["patient_group"])) for name, split in splits.items()},
        "training": {
            row["stage"]: {"seconds": row["train_runtime"], "images_per_second": row["train_samples_per_second"]}
            for row in run.read_history()
            if "train_runtime" in row
        },
        "versions": versions(),
        "machine": machine(),
    }


def source_of(options: RunOptions, splits: datasets.DatasetDict) -> str:
    """What the slices were, in a few words that stand wherever a result is shown."""
    if options.data.phantom_slices is not None:
        return "generated phantoms"
    return "Figshare slices re-encoded to 8 bit" if _is_8_bit(splits) else "Figshare slices"


def _is_8_bit(splits: datasets.DatasetDict) -> bool:
    """Whether no raw intensity is above 255; those of the published files reach thousands."""
    return max(max(split["raw_max"]) for split in splits.values()) <= 255


def command(public: bool = False) -> str:
    """The command line of this process, as one would type it.

    Args:
        public: shorten absolute paths to their last part, so that a card does not publish someone's folders.
    """
    arguments = [Path(argument).name if public and Path(argument).is_absolute() else argument for argument in sys.argv]
    return shlex.join(["accelerate", "launch", *arguments])


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}


def machine() -> str:
    """The compute device and, for a CPU, its threads."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        return torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
