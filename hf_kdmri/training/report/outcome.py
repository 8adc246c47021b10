"""What a finished run leaves: one row per model, figures, the facts of the run."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_kdmri.data.pictures import to_8_bit
from hf_kdmri.evaluation import (
    ClassificationReport,
    count_flops,
    count_parameters,
    milliseconds_per_image,
    plot_comparison,
    plot_prediction_grid,
    plot_training_curves,
)
from hf_kdmri.hub.provenance import code_state, provenance, teacher_of, write_provenance
from hf_kdmri.hub.samples import write_samples
from hf_kdmri.models import TimmClassifier
from hf_kdmri.secrets import hide_in_command
from hf_kdmri.training.inputs import RunData, describe
from hf_kdmri.training.options import RunOptions
from hf_kdmri.training.run_folder import RunFolder

MODEL_NAMES = {"teacher": "Teacher", "baseline": "Student alone", "student": "Distilled student"}
_VERSIONED = ("torch", "transformers", "timm", "datasets", "accelerate")
_GRID_IMAGES = 20
_GRID_PIXELS = 512


def model_row(
    stage: str, model: TimmClassifier, probabilities: np.ndarray, data: RunData, folder: Path
) -> dict[str, Any]:
    """Everything a table says of one model.

    Args:
        stage: "teacher", "baseline" or "student".
        model: measured for size and latency on its present device, one image at a time.
        probabilities: (N, C) of the N test images, columns in the order of `data.labels`.
        data: the run's data; scores over patients are left out where it names none.
        folder: where the model is saved.

    Returns:
        A row as `results_table` takes it, with the whole `ClassificationReport`.
    """
    report = ClassificationReport(data.labels).compute(
        predictions=probabilities, references=data.splits["test"]["label"][:], groups=data.groups("test")
    )
    return {
        "model": MODEL_NAMES[stage],
        "unit": data.unit,
        "architecture": model.config.architecture,
        "image_size": model.image_size,
        "parameters": count_parameters(model),
        "flops": count_flops(model, model.image_size),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "ms_per_image": milliseconds_per_image(model, model.image_size),
        **report,
    }


def write_figures(
    run: RunFolder,
    options: RunOptions,
    rows: Sequence[Mapping[str, Any]],
    data: RunData,
    probabilities: np.ndarray,
) -> list[str]:
    """Write curves, prediction grid and comparison as PNG and SVG.

    Args:
        run: the run's folder.
        options: of the run.
        rows: one per model.
        data: the run's data.
        probabilities: of the distilled student on the test split, (N, C).

    Returns:
        Paths of the PNG files.
    """
    folder, splits, test, split = run.path / "figures", data.splits, data.splits["test"], data.title
    training = "training streamed;" if data.stream is not None else f"{len(splits['train'])} training and"
    chosen = np.sort(np.random.default_rng(options.training.seed).permutation(len(test))[:_GRID_IMAGES])
    shown = test.select(chosen)
    curves = plot_training_curves(
        run.read_history(),
        folder / "training_curves",
        subtitle=f"{split}; {training} {len(splits['validation'])} validation {data.unit}",
    )
    grid = plot_prediction_grid(
        [_thumbnail(image) for image in shown["image"]],
        shown["label"],
        probabilities[chosen].argmax(1),
        probabilities[chosen],
        data.labels,
        folder / "predictions",
        subtitle=f"{split}; {len(chosen)} of {len(test)} test {data.unit}, drawn at random",
    )
    comparison = plot_comparison(rows, folder / "comparison", subtitle=f"{split}, test")
    return [str(paths[0]) for paths in (curves, grid, comparison)]


def prepare_student_for_the_hub(
    run: RunFolder, options: RunOptions, data: RunData, facts: Mapping[str, Any], models: Mapping[str, TimmClassifier]
) -> None:
    """Write into the student's folder what its card and a push need: provenance in `config.json`, sample images."""
    folder = run.model_folder("student")
    teacher = teacher_of(options.as_dict(), models["teacher"].config.architecture)
    write_provenance(folder, provenance(facts, options.as_dict(), teacher))
    if data.own is None:
        write_samples(folder, data.labels)


def run_facts(run: RunFolder, options: RunOptions, data: RunData) -> dict[str, Any]:
    """What else `metrics.json` should say: the command, the data, the machine."""
    groups = data.group_counts
    return {
        "command": run_command(),
        "source": data.source,
        "split": data.split,
        "fold": data.fold,
        "seed": options.training.seed,
        "phantom": options.data.phantom_slices is not None,
        "own_data": data.own is not None,
        "has_patients": data.groups("test") is not None,
        "classes": data.labels,
        "slices": {name: len(split) for name, split in data.splits.items()},
        **({} if groups is None else {"patient_groups": groups}),
        "training": {
            row["stage"]: {
                # of all processes that took part, where a run was resumed; transformers divides by the last one's
                "seconds": row.get("seconds", row["train_runtime"]),
                "images_per_second": row["train_samples_per_second"]
                * (row["train_runtime"] / max(row.get("seconds", row["train_runtime"]), 1e-9)),
            }
            for row in run.read_history()
            if "train_runtime" in row
        },
        "versions": versions(),
        "code": code_state(),
        "machine": machine(),
    }


def results_title(facts: Mapping[str, Any]) -> str:
    """What stands above the table of a finished run, from the facts in `metrics.json`."""
    title = f"Test on {describe(facts['source'], facts['split'], facts['fold'])}"
    return title if "folds" not in facts else f"{title}, folds {', '.join(map(str, facts['folds']))} pooled"


def _thumbnail(image: Image.Image) -> Image.Image:
    """A picture as the models see it, small enough for a figure."""
    shown = to_8_bit(image)
    shown.thumbnail((_GRID_PIXELS, _GRID_PIXELS))
    return shown


def run_command() -> str:
    """The command line of this process, as one would type it, without secrets."""
    return shlex.join(["accelerate", "launch", *hide_in_command(sys.argv)])


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}


def machine() -> str:
    """The compute device and, for a CPU, its threads."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        return torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
