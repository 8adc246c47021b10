"""The command line: `kdmri predict | evaluate | report | compare | export | push`.

Results go to standard output, everything else to standard error. Heavy libraries are imported by the command that needs
them, so that `kdmri --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_kdmri.command_exits import FAILED, USAGE
from hf_kdmri.command_exits import stop as _stop
from hf_kdmri.run_commands import add_run_commands

if TYPE_CHECKING:
    from hf_kdmri.inference import ImageClassifier, Outcome

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Use, check, export, publish a small brain MRI classifier. [b]Research use only, not a medical device.[/b]",
    epilog="Exit codes: 0 all went well; 1 something failed, named on standard error; 2 wrong usage.",
)

Model = Annotated[str, typer.Option("--model", "-m", help="Model folder, or user/name on the Hugging Face Hub.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in memory at once.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Divide logits by the temperature stored with the model; classes stay.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps …; never changed silently.")]


class PredictionFormat(str, Enum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


class ReportFormat(str, Enum):
    """How an evaluation is printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


class ExportFormat(str, Enum):
    """What a model can be exported to."""

    onnx = "onnx"


def _load(model: str, device: str, calibrated: bool = False) -> ImageClassifier:
    from hf_kdmri.inference import ImageClassifier

    if (Path(model) / "student" / "config.json").is_file() and not (Path(model) / "config.json").is_file():
        _stop(f"{model} is the folder of a run; its student is {Path(model) / 'student'}", USAGE)
    try:
        return ImageClassifier(model, device, calibrated=calibrated)
    except ValueError as error:
        _stop(error, USAGE)


def _with_progress(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """Pass outcomes on under a progress bar on standard error, shown only on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(outcomes, "Classifying", total, console=console, disable=not console.is_terminal)


def _list_failures(failures: list[Outcome], total: int) -> None:
    """Name the files that failed on standard error and end with exit code 1, if there are any."""
    if failures:
        typer.echo(f"kdmri: {len(failures)} of {total} files could not be classified:", err=True)
        for failure in failures:
            typer.echo(f"  {failure.path}: {failure.error}", err=True)
        raise typer.Exit(FAILED)


@app.command(epilog="Example: kdmri predict scans/ --model runs/demo/student --format csv > predictions.csv")
def predict(
    source: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", help="An image, or a folder searched at any depth.")
    ],
    model: Model,
    format: Annotated[PredictionFormat, typer.Option(help="How to print.")] = PredictionFormat.table,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    calibrated: Calibrated = False,
) -> None:
    """Name the tumour in each image. There is no "no tumour" class: a healthy slice gets a tumour name too.

    16-bit and float images are windowed between their 0.1 and 99.9 percentiles, as training slices were. A file that
    cannot be read is listed at the end, the others are classified, and the exit code is 1.
    """
    from hf_kdmri.data.pictures import SUFFIXES, find_images
    from hf_kdmri.prediction_output import PredictionWriter

    try:
        total = sum(1 for _ in find_images(source))
    except FileNotFoundError as error:
        _stop(error, USAGE)
    if not total:
        _stop(f"{source} holds no images; expected files that end in {', '.join(sorted(SUFFIXES))}", USAGE)
    classifier = _load(model, device, calibrated)
    failures: list[Outcome] = []
    with PredictionWriter(format.value, classifier.labels, sys.stdout) as writer:
        for outcome in _with_progress(classifier.classify_files(find_images(source), batch_size), total):
            if outcome.probabilities is None:
                failures.append(outcome)
            else:
                writer.write(outcome.path, outcome.probabilities)
    _list_failures(failures, total)


@app.command(
    epilog="Example: kdmri evaluate jane/kdmri-student --images scans/ --labels labels.csv --label-map notumor="
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, or user/name on the Hugging Face Hub.")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder that the CSV's files lie in.")],
    labels: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV (comma, semicolon or tab) with columns file, label (a class name, in any case) and, if known, "
            "patient.",
        ),
    ],
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CLASS", help="Take NAME for CLASS, or, as NAME=, skip its rows. For each name once."
        ),
    ] = None,
    file_column: Annotated[str, typer.Option(help="Name of the column of files.")] = "file",
    label_column: Annotated[str, typer.Option(help="Name of the column of labels.")] = "label",
    patient_column: Annotated[
        str | None, typer.Option(help="Name of the column of patients.", show_default="patient, if there is one")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write each image's probabilities here: .csv or .parquet.")
    ] = None,
    format: Annotated[ReportFormat, typer.Option(help="How to print.")] = ReportFormat.table,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    calibrated: Calibrated = False,
) -> None:
    """Score a model on images of your own: accuracy, macro F1, recall per class, confusion matrix and more.

    With a column patient, also over patients by mean probability, and with intervals over patients. Files that cannot
    be read are listed, left out of the score and make the exit code 1. What share was skipped, and why, is printed.
    """
    from hf_kdmri.evaluation_output import (
        check_prediction_file,
        describe_files,
        format_report,
        score_files,
        write_predictions,
    )
    from hf_kdmri.label_file import parse_label_map, read_label_file, same_content

    try:
        mapping = parse_label_map(label_map or [])
        if predictions is not None:
            check_prediction_file(predictions)
    except ValueError as error:
        _stop(error, USAGE)
    classifier = _load(model, device, calibrated)
    try:
        table = read_label_file(
            labels,
            images,
            classifier.labels,
            label_map=mapping,
            file_column=file_column,
            label_column=label_column,
            patient_column=patient_column,
        )
    except ValueError as error:
        _stop(error, USAGE)
    for name in table.unused:
        typer.echo(f"kdmri: the label map names {name!r}, which no row has", err=True)
    rows, copies = table.rows, same_content([row.path for row in table.rows])
    for group in copies:
        typer.echo(f"kdmri: {', '.join(map(str, group))} are the same file, byte for byte", err=True)
    outcomes = list(_with_progress(classifier.classify_files((row.path for row in rows), batch_size), len(rows)))
    pairs = list(zip(rows, outcomes, strict=True))
    scored = [(row, outcome.probabilities) for row, outcome in pairs if outcome.probabilities is not None]
    failures = [outcome for outcome in outcomes if outcome.probabilities is None]
    files = {
        "listed": len(rows) + sum(table.skipped.values()),
        "scored": len(scored),
        "skipped_labels": table.skipped,
        "unreadable": len(failures),
        "copies": sum(len(group) - 1 for group in copies),
    }
    if not scored:
        typer.echo(f"kdmri: nothing to score: {describe_files(files)}", err=True)
        _list_failures(failures, len(rows))
    kept, probabilities = zip(*scored, strict=True)
    try:
        report = score_files(kept, probabilities, classifier.labels, files)
    except ValueError as error:
        _stop(f"{labels}: {error}", USAGE)
    if predictions is not None:
        try:
            write_predictions(predictions, kept, probabilities, classifier.labels, images)
        except OSError as error:
            _stop(f"--predictions {predictions} cannot be written: {error.strerror or error}")
    typer.echo(format_report(report, classifier.labels, format.value))
    _list_failures(failures, len(rows))


@app.command(epilog="Example: kdmri export runs/demo/student --to onnx --out student.onnx")
def export(
    model: Annotated[str, typer.Argument(help="Model folder, or user/name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    to: Annotated[ExportFormat, typer.Option(help="Format.")] = ExportFormat.onnx,
) -> None:
    """Export a model and check the file against PyTorch: logits agree within 1e-4, or nothing is written."""
    from hf_kdmri.hub.onnx_export import OPSET, ExportError, export_onnx

    try:
        path = export_onnx(model, out)
    except (ImportError, ExportError, OSError, ValueError) as error:
        _stop(error)
    typer.echo(
        f"{path} ({path.stat().st_size:,} bytes): {to.value}, opset {OPSET}, dynamic batch, checked against PyTorch"
    )


@app.command(epilog="Example: kdmri push runs/figshare --to jane/kdmri-student --private --dry-run")
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Run folder (its student/ is sent) or model folder.")
    ],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent; needs no account.")] = False,
) -> None:
    """Publish a student in one commit. Log in first with `hf auth login`, or set HF_TOKEN."""
    from hf_kdmri.hub.publish import PublishError, find_model_folder, push_folder

    try:
        result = push_folder(find_model_folder(folder), to, private=private, dry_run=dry_run)
    except (OSError, ValueError) as error:
        _stop(error, USAGE)
    except PublishError as error:
        _stop(error)
    for name, size in result.files:
        typer.echo(f"{size:>14,}  {name}")
    verb = "would be sent" if result.url is None else "sent"
    typer.echo(f"{result.total_bytes:>14,}  bytes in {len(result.files)} files {verb} to {result.repo_id}")
    if result.url:
        typer.echo(result.url)


add_run_commands(app)

if __name__ == "__main__":
    app()
