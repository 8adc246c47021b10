"""`kdmri export`: a model in a format that other runtimes read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from hf_kdmri.cli.classifying import check_model
from hf_kdmri.cli.exits import USAGE, stop, tell
from hf_kdmri.wording import counted

if TYPE_CHECKING:
    from hf_kdmri.export import QuantizationReport
    from hf_kdmri.export.images import ExportImages

EXAMPLE = "kdmri export runs/demo/student --to onnx --int8 --calibration training_images/ --out student-int8.onnx"
_COMPARED = 16  # real images on which logits are compared, where any are given


class ExportFormat(str, Enum):
    """What a model can be exported to."""

    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"


_SUFFIX = {ExportFormat.onnx: ".onnx", ExportFormat.openvino: ".xml", ExportFormat.torch: ".pt2"}


def export(
    model: Annotated[str, typer.Argument(help="Model folder, or user/name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, .xml (OpenVINO, a .bin beside it) or .pt2.")],
    to: Annotated[ExportFormat, typer.Option(help="Format.")] = ExportFormat.onnx,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights and activations; needs --calibration or --data-dir.")
    ] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Beside the ONNX file, also OpenVINO's.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(exists=True, help="Folder of training images, to find the ranges of activations on.")
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="How many of them, drawn with seed 0.")] = 256,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="The published slices: calibrate on the fold's training, measure on its validation slices.",
        ),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where the prepared slices are kept.")] = None,
    fold: Annotated[
        int, typer.Option(min=0, max=4, help="That the model was trained on, of the published slices.")
    ] = 0,
    labels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV with columns file and label, to measure accuracy on."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder that the CSV's files lie in.")
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of accuracy that int8 may lose.")] = 0.3,
    keep: Annotated[bool, typer.Option("--keep", help="Write the int8 file whatever it loses.")] = False,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="7-bit weights, exact also on x86 CPUs without VNNI.")
    ] = False,
) -> None:
    """Export a model and check the file against PyTorch: logits agree within 1e-4, or nothing is written.

    An int8 file agrees less. The share of images on which it names the same class, and with labelled images its loss of
    accuracy, are measured, printed and stored in the file, and a loss above --max-drop is refused.
    """
    _check_usage(to, out, int8, openvino, calibration is not None or data_dir is not None)
    tell(f"exporting {model} to {out} …")
    check_model(model)
    from hf_kdmri.export import ExportError
    from hf_kdmri.export.images import find_export_images
    from hf_kdmri.export.source import SourceModel

    try:
        given = find_export_images(
            SourceModel.load(model).labels,
            calibration=calibration,
            count=calibration_images,
            data_dir=data_dir,
            cache_dir=cache_dir,
            fold=fold,
            label_file=labels,
            images=images,
        )
    except (OSError, ValueError) as error:
        stop(error, USAGE)
    try:
        if to is ExportFormat.torch:
            from hf_kdmri.export import export_torch

            _tell(export_torch(model, out, images=given.some(_COMPARED)), "torch.export")
        else:
            _export_onnx(model, out, to, openvino, int8, given, None if keep else max_drop, reduce_range)
    except (ImportError, ExportError, OSError, ValueError) as error:
        stop(error)


def _check_usage(to: ExportFormat, out: Path, int8: bool, openvino: bool, has_training: bool) -> None:
    if out.suffix != _SUFFIX[to] and to is not ExportFormat.onnx:
        stop(f"--out {out} does not end in {_SUFFIX[to]}, as files of --to {to.value} do", USAGE)
    if openvino and to is not ExportFormat.onnx:
        stop(f"--openvino goes with --to onnx, not with --to {to.value}", USAGE)
    if int8 and to is ExportFormat.torch:
        stop("--int8 goes with --to onnx and --to openvino, not with --to torch", USAGE)
    if int8 and not has_training:
        stop(
            "--int8 needs training images to calibrate on: --calibration FOLDER, or --data-dir DIR with the published "
            "slices",
            USAGE,
        )


def _export_onnx(
    model: str,
    out: Path,
    to: ExportFormat,
    openvino: bool,
    int8: bool,
    given: ExportImages,
    max_drop: float | None,
    reduce_range: bool,
) -> None:
    """Write float32, from it int8, from the last of them OpenVINO; what was not asked for is not kept."""
    from hf_kdmri.export import export_onnx, export_openvino

    with TemporaryDirectory() as scratch:
        wants_onnx = to is ExportFormat.onnx
        compared = given.some(_COMPARED)
        target = out if wants_onnx else Path(scratch) / "model.onnx"
        report = None
        if int8:
            from hf_kdmri.export import quantize_onnx

            float32 = export_onnx(model, Path(scratch) / "float32.onnx", images=compared)
            report = quantize_onnx(
                float32,
                target,
                given.training or (),
                labelled=given.pairs(),
                max_drop=max_drop,
                reduce_range=reduce_range,
                source=given.source,
            )
        else:
            export_onnx(model, target, images=compared)
        if wants_onnx:
            _tell(target, "onnx", report)
        if openvino or not wants_onnx:
            xml = export_openvino(model, out.with_suffix(".xml"), onnx_file=target, images=compared)
            _tell(xml, "openvino", report)


def _tell(path: Path, form: str, report: QuantizationReport | None = None) -> None:
    size = path.stat().st_size
    if form == "onnx":
        import onnx

        form += f", opset {next(o.version for o in onnx.load(path).opset_import if o.domain in ('', 'ai.onnx'))}"
    elif form == "openvino":
        size += path.with_suffix(".bin").stat().st_size
    checked = "checked against PyTorch" if report is None else "int8"
    typer.echo(f"{path} ({size:,} bytes): {form}, dynamic batch, {checked}")
    if report is not None and form != "openvino":
        typer.echo(
            f"  calibrated on {counted(report.calibration_images, 'image')} ({report.source}); {report.describe()}"
        )
        if report.labelled and not report.is_enough:
            typer.echo(
                f"kdmri: {counted(report.measured_images, 'labelled image')} are too few to hold the drop to a limit",
                err=True,
            )
