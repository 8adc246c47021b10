"""`kdmri export`: a model in a format that other runtimes read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import stop

EXAMPLE = "kdmri export runs/demo/student --to onnx --out student.onnx"


class ExportFormat(str, Enum):
    """What a model can be exported to."""

    onnx = "onnx"


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
        stop(error)
    typer.echo(
        f"{path} ({path.stat().st_size:,} bytes): {to.value}, opset {OPSET}, dynamic batch, checked against PyTorch"
    )
