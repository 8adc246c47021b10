"""The command line: `kdmri predict | evaluate | export | push`.

Results go to standard output, everything else to standard error. Heavy libraries are imported by the command that needs
them, so that `kdmri --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from hf_kdmri.inference import ImageClassifier, Outcome

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Use, check, export, publish a small brain MRI classifier. [b]Research use only, not a medical device.[/b]",
    epilog="Exit codes: 0 all went well; 1 something failed, named on standard error; 2 wrong usage.",
)

FAILED, USAGE = 1, 2
Model = Annotated[str, typer.Option("--model", "-m", help="Model folder, or user/name on the Hugging Face Hub.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in memory at once.")]
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


class ExportFormat(str, Enum):
    """What a model can be exported to."""

    onnx = "onnx"


def _stop(message: object, code: int = FAILED) -> NoReturn:
    typer.echo(f"kdmri: {message}", err=True)
    raise typer.Exit(code)


def _load(model: str, device: str) -> ImageClassifier:
    from hf_kdmri.inference import ImageClassifier

    try:
        return ImageClassifier(model, device)
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
    classifier = _load(model, device)
    failures: list[Outcome] = []
    with PredictionWriter(format.value, classifier.labels, sys.stdout) as writer:
        for outcome in _with_progress(classifier.classify_files(find_images(source), batch_size), total):
            if outcome.probabilities is None:
                failures.append(outcome)
            else:
                writer.write(outcome.path, outcome.probabilities)
    _list_failures(failures, total)


@app.command(epilog="Example: kdmri evaluate jane/kdmri-student --images scans/ --labels labels.csv --format json")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, or user/name on the Hugging Face Hub.")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder that the CSV's files lie in.")],
    labels: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="CSV with columns file, label (a class name) and, if known, patient."
        ),
    ],
    format: Annotated[ReportFormat, typer.Option(help="How to print.")] = ReportFormat.table,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Score a model on images of your own: accuracy, macro F1, recall per class and confusion matrix.

    With a column patient, also over patients by mean probability. Files that cannot be read are listed, left out of the
    score and make the exit code 1.
    """
    from hf_kdmri.label_file import read_label_file

    classifier = _load(model, device)
    try:
        rows = read_label_file(labels, images, classifier.labels)
    except ValueError as error:
        _stop(error, USAGE)
    outcomes = list(_with_progress(classifier.classify_files((row.path for row in rows), batch_size), len(rows)))
    scored = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome.probabilities is not None]
    failures = [outcome for outcome in outcomes if outcome.probabilities is None]
    if scored:
        from hf_kdmri.evaluation.metrics import ClassificationReport

        try:
            report = ClassificationReport(classifier.labels).compute(
                predictions=[outcome.probabilities for _, outcome in scored],
                references=[row.label for row, _ in scored],
                groups=[row.patient for row, _ in scored] if rows[0].patient is not None else None,
            )
        except ValueError as error:
            _stop(f"{labels}: {error}", USAGE)
        _print_report(report, classifier.labels, format)
    _list_failures(failures, len(rows))


def _print_report(report: dict[str, Any], labels: list[str], format: ReportFormat) -> None:
    if format is ReportFormat.json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    for unit, part in (("slices", report), ("patients", report.get("patients"))):
        if part is None:
            continue
        typer.echo(
            f"{part['n']} {unit}: accuracy {part['accuracy']:.1%}, macro F1 {part['macro_f1']:.1%}, "
            f"balanced accuracy {part['balanced_accuracy']:.1%}"
        )
        width = max(map(len, labels))
        typer.echo(f"  {'true':{width}}  recall  predicted " + "  ".join(f"{label:>6}" for label in labels))
        for label, counts in zip(labels, part["confusion_matrix"], strict=True):
            recall = part["recall_per_class"][label]
            shown = "     –" if recall is None else f"{recall:6.1%}"
            cells = "  ".join(f"{count:>{max(6, len(name))}}" for count, name in zip(counts, labels, strict=True))
            typer.echo(f"  {label:{width}}  {shown}            {cells}")


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


if __name__ == "__main__":
    app()
