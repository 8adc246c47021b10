"""What the commands that classify images share: their options, loading a model, progress, the list of failures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_kdmri.cli.exits import FAILED, USAGE, stop, tell
from hf_kdmri.wording import counted

if TYPE_CHECKING:
    from hf_kdmri.inference import ImageClassifier, Outcome

SHIPPED = ""  # as a model's name: the one that comes with the package
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Model folder, .onnx file of kdmri export, or user/name on the Hub.",
        show_default="the student that comes with this package",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in memory at once.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Divide logits by the temperature stored with the model; classes stay.")
]
_WARNINGS = 10  # a folder of masks would fill the screen
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps …; never changed silently.")]


def model_or_shipped(model: str) -> str:
    """The model that was named, or the folder of the one that comes with the package, which is told."""
    if model != SHIPPED:
        return model
    from hf_kdmri.shipped import shipped_student

    try:
        folder = shipped_student()
    except FileNotFoundError as error:
        stop(error, USAGE)
    tell(f"no --model: with the student of this package, {folder.name}. Research use only, not a medical device")
    return str(folder)


def check_model(model: str) -> None:
    """Leave with a message where there is no such model, before anything slow."""
    from hf_kdmri.hub_names import check_model_name

    try:
        check_model_name(model)
    except ValueError as error:
        stop(error, USAGE)


def load_classifier(model: str, device: str, calibrated: bool = False) -> ImageClassifier:
    """Load a model, or say in one line why it cannot be and leave."""
    if (Path(model) / "student" / "config.json").is_file() and not (Path(model) / "config.json").is_file():
        stop(f"{model} is the folder of a run; its student is {Path(model) / 'student'}", USAGE)
    check_model(model)
    from hf_kdmri.inference import ImageClassifier

    # What Pillow and pydicom warn of in damaged files may quote them, a patient's name included.
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\b")
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    try:
        if Path(model).suffix == ".onnx":
            from hf_kdmri.onnx_inference import OnnxImageClassifier

            return OnnxImageClassifier(model, device, calibrated=calibrated)
        return ImageClassifier(model, device, calibrated=calibrated)
    except (ImportError, ValueError) as error:
        stop(error, USAGE)


def with_progress(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """Pass outcomes on under a progress bar on standard error, shown only on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(outcomes, "Classifying", total, console=console, disable=not console.is_terminal)


def list_warnings(outcomes: list[Outcome]) -> None:
    """Name the files that were classified and may be no pictures of a head, on standard error."""
    for outcome in outcomes[:_WARNINGS]:
        typer.echo(f"kdmri: warning: {outcome.path} {outcome.warning}", err=True)
    if (more := len(outcomes) - _WARNINGS) > 0:
        typer.echo(f"kdmri: warning: {counted(more, 'more file')} like that", err=True)


def list_failures(failures: list[Outcome], total: int) -> None:
    """Name the files that failed on standard error and end with exit code 1, if there are any."""
    if failures:
        typer.echo(f"kdmri: {len(failures)} of {counted(total, 'file')} could not be classified:", err=True)
        for failure in failures:
            typer.echo(f"  {failure.path}: {failure.error}", err=True)
        raise typer.Exit(FAILED)
