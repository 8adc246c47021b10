"""`kdmri pack`: a finished run's student as a model repository in a folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import USAGE, stop, tell
from hf_kdmri.cli.push import list_files

EXAMPLE = "kdmri pack runs/figshare --out models/my-student --half"


class PackedModel(str, Enum):
    """Which of a run's students is packed."""

    student = "student"
    baseline = "baseline"


def pack(
    run: Annotated[Path, typer.Argument(help="Run folder of one fold: runs/figshare, runs/folds/fold-0.")],
    out: Annotated[Path, typer.Option(help="Folder to write, or one that was packed before.")],
    name: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="What the card's snippets call the model, if it has a name.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Weights in float16: half the size; refused if predictions change.")
    ] = False,
    dataset: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The data set on the Hub.")] = None,
    model: Annotated[
        PackedModel, typer.Option(help="The distilled student, or the one without a teacher, where that is the better.")
    ] = PackedModel.student,
) -> None:
    """Write what `kdmri push` would send of the student into a folder, with its predictions for the sample pictures.

    For 8-bit ONNX instead of float32, first: kdmri export RUN/student --int8 --out RUN/student/onnx/model_int8.onnx
    (RUN/baseline with --model baseline).
    """
    from hf_kdmri.hub.hub_errors import PublishError
    from hf_kdmri.hub.packing import PackError, pack_student

    tell(f"packing {run / model.value} into {out} …")
    try:
        if model is PackedModel.baseline:
            from hf_kdmri.training.report.student_card import write_card_of_baseline

            write_card_of_baseline(run)
        sizes = pack_student(run, out, name, half=half, dataset_id=dataset, stage=model.value)
    except (PublishError, PackError) as error:
        stop(error)
    except (OSError, ValueError) as error:
        stop(error, USAGE)
    list_files(str(out), list(sizes.items()))
