"""`kdmri predict`: probabilities of images, one by one or folders of them."""

from __future__ import annotations

import io
import sys
from enum import Enum
from typing import Annotated

import typer

from hf_kdmri.cli.classifying import (
    SHIPPED,
    BatchSize,
    Calibrated,
    Device,
    Model,
    list_failures,
    list_warnings,
    load_classifier,
    model_or_shipped,
    with_progress,
)
from hf_kdmri.cli.exits import USAGE, stop

EXAMPLE = "kdmri predict scans/ slice.png --csv > predictions.csv"


class PredictionFormat(str, Enum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images, folders searched at any depth, patterns."),
    ],
    model: Model = SHIPPED,
    format: Annotated[PredictionFormat | None, typer.Option(help="How to print.", show_default="table")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Short for --format csv.")] = False,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    calibrated: Calibrated = False,
) -> None:
    """Name the tumour in each image. There is no "no tumour" class: a healthy slice gets a tumour name too.

    16-bit and float images, DICOM and NumPy arrays are windowed between their 0.1 and 99.9 percentiles, as training
    slices were. A file that cannot be read is listed at the end, the others are classified, and the exit code is 1.
    A picture of very few grey levels is classified and pointed out: it may show no head.
    """
    from hf_kdmri.cli.prediction_output import PredictionWriter
    from hf_kdmri.cli.sources import find_sources

    form = _chosen_format(format, as_json, as_csv)
    given = find_sources(sources)
    if not given.total:
        stop("\n  ".join(f"{path} {reason}" for path, reason in given.absent.items()), USAGE)
    classifier = load_classifier(model_or_shipped(model), device, calibrated)
    from hf_kdmri.inference import Outcome  # after the model was looked up: torch takes seconds

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be bytes that are no UTF-8
    failures = [Outcome(path, None, reason) for path, reason in given.absent.items()]
    suspicious: list[Outcome] = []
    with PredictionWriter(form.value, classifier.labels, sys.stdout) as writer:
        for outcome in with_progress(classifier.classify_files(given, batch_size), given.total):
            if outcome.probabilities is None:
                failures.append(outcome)
                continue
            writer.write(outcome.path, outcome.probabilities, outcome.warning)
            if outcome.warning:
                suspicious.append(outcome)
    list_warnings(suspicious)
    list_failures(failures, given.total + len(given.absent))


def _chosen_format(format: PredictionFormat | None, as_json: bool, as_csv: bool) -> PredictionFormat:
    asked = {form for form, wanted in ((PredictionFormat.json, as_json), (PredictionFormat.csv, as_csv)) if wanted}
    if format is not None:
        asked.add(format)
    if len(asked) > 1:
        stop(f"{' and '.join(sorted(form.value for form in asked))} are asked for; give one format", USAGE)
    return asked.pop() if asked else PredictionFormat.table
