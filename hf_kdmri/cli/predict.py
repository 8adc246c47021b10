"""`kdmri predict`: probabilities of every image of a folder."""

from __future__ import annotations

import io
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_kdmri.cli.classifying import BatchSize, Calibrated, Device, Model, list_failures, load_classifier, with_progress
from hf_kdmri.cli.exits import USAGE, stop

if TYPE_CHECKING:
    from hf_kdmri.inference import Outcome

EXAMPLE = "kdmri predict scans/ --model runs/demo/student --format csv > predictions.csv"


class PredictionFormat(str, Enum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


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

    16-bit and float images, DICOM and NumPy arrays are windowed between their 0.1 and 99.9 percentiles, as training
    slices were. A file that cannot be read is listed at the end, the others are classified, and the exit code is 1.
    """
    from hf_kdmri.cli.prediction_output import PredictionWriter
    from hf_kdmri.data.pictures import SUFFIXES, find_images

    try:
        total = sum(1 for _ in find_images(source))
    except FileNotFoundError as error:
        stop(error, USAGE)
    if not total:
        stop(f"{source} holds no images; expected files that end in {', '.join(sorted(SUFFIXES))}", USAGE)
    classifier = load_classifier(model, device, calibrated)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be bytes that are no UTF-8
    failures: list[Outcome] = []
    with PredictionWriter(format.value, classifier.labels, sys.stdout) as writer:
        for outcome in with_progress(classifier.classify_files(find_images(source), batch_size), total):
            if outcome.probabilities is None:
                failures.append(outcome)
            else:
                writer.write(outcome.path, outcome.probabilities)
    list_failures(failures, total)
