"""`kdmri evaluate`: a model's scores on images and labels of one's own."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.classifying import (
    BatchSize,
    Calibrated,
    Device,
    check_model,
    list_failures,
    list_warnings,
    load_classifier,
    with_progress,
)
from hf_kdmri.cli.exits import USAGE, stop, tell

EXAMPLE = "kdmri evaluate jane/kdmri-student --images scans/ --labels labels.csv --label-map notumor="


class ReportFormat(str, Enum):
    """How an evaluation is printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, .onnx file of kdmri export, or user/name on the Hub.")],
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
        str | None,
        typer.Option(help="Name of the column of patients; '' for none.", show_default="patient, if there is one"),
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

    With a column patient, also over patients by mean probability, and with intervals over patients. Files that are
    missing or cannot be read are listed, left out of the score and make the exit code 1. What share was skipped, and
    why, is printed.
    """
    tell(f"evaluating {model} on {labels} …")
    check_model(model)
    from hf_kdmri.cli.evaluation_output import (
        check_prediction_file,
        describe_files,
        format_report,
        score_files,
        write_predictions,
    )
    from hf_kdmri.data.label_file import read_label_file, same_content
    from hf_kdmri.data.label_map import parse_label_map
    from hf_kdmri.inference import Outcome

    try:
        mapping = parse_label_map(label_map or [])
        if predictions is not None:
            check_prediction_file(predictions)
    except ValueError as error:
        stop(error, USAGE)
    classifier = load_classifier(model, device, calibrated)
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
        stop(error, USAGE)
    for name in table.unused:
        typer.echo(f"kdmri: the label map names {name!r}, which no row has", err=True)
    rows, copies = table.rows, same_content([row.path for row in table.rows])
    for group in copies:
        typer.echo(f"kdmri: {', '.join(map(str, group))} are the same file, byte for byte", err=True)
    outcomes = list(with_progress(classifier.classify_files((row.path for row in rows), batch_size), len(rows)))
    pairs = list(zip(rows, outcomes, strict=True))
    scored = [(row, outcome.probabilities) for row, outcome in pairs if outcome.probabilities is not None]
    unreadable = [outcome for outcome in outcomes if outcome.probabilities is None]
    list_warnings([outcome for outcome in outcomes if outcome.warning])
    failures = [*(Outcome(path, None, reason) for path, reason in table.missing.items()), *unreadable]
    files = {
        "listed": table.listed,
        "scored": len(scored),
        "skipped_labels": table.skipped,
        "missing": len(table.missing),
        "unreadable": len(unreadable),
        "copies": sum(len(group) - 1 for group in copies),
    }
    if not scored:
        typer.echo(f"kdmri: nothing to score: {describe_files(files)}", err=True)
        list_failures(failures, table.listed)
    kept, probabilities = zip(*scored, strict=True)
    try:
        report = score_files(kept, probabilities, classifier.labels, files)
    except ValueError as error:
        stop(f"{labels}: {error}", USAGE)
    if predictions is not None:
        try:
            write_predictions(predictions, kept, probabilities, classifier.labels, images)
        except OSError as error:
            stop(f"--predictions {predictions} cannot be written: {error.strerror or error}")
    typer.echo(format_report(report, classifier.labels, format.value))
    list_failures(failures, table.listed)
