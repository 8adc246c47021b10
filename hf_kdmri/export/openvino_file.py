"""Export a model to OpenVINO's intermediate representation: an `.xml` with its `.bin`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hf_kdmri.export.checks import ExportError, check_logits, require
from hf_kdmri.export.onnx_file import export_onnx
from hf_kdmri.export.source import SourceModel
from hf_kdmri.onnx_inference import OnnxImageClassifier

LEAST_AGREEMENT = 0.95  # of predicted classes, between onnxruntime and OpenVINO on one int8 file
_EXTRA = ("openvino", "onnx", "onnxscript", "onnxruntime")


def export_openvino(
    model: str | Path, out_file: str | Path, *, onnx_file: str | Path | None = None, images: Sequence[Image.Image] = ()
) -> Path:
    """Export a classifier to OpenVINO through ONNX, batch dynamic, weights in the type of the ONNX file.

    The facts of the ONNX metadata go into the `rt_info` under `model_info`. The written pair is read again, and its
    logits in float32 are compared with PyTorch's before it takes its place. (On CPUs with bfloat16 units, OpenVINO
    computes in bfloat16 unless `INFERENCE_PRECISION_HINT` says f32: faster, and off by some hundredths of a logit.)

    Args:
        model: folder or Hub name of a timm_wrapper classifier.
        out_file: where the `.xml` goes, the `.bin` beside it; existing ones are replaced on success.
        onnx_file: an ONNX file made of this model, to convert instead of a new one. An int8 file, which is written as
            QuantizeLinear and DequantizeLinear, runs as int8; it is compared with onnxruntime's predictions on
            `images`, which are then needed.
        images: real images to compare on as well, RGB.

    Returns:
        Path of the `.xml`.

    Raises:
        ImportError: the extras `onnx` and `openvino` are not installed.
        OSError: the model is not there, or the files cannot be written.
        ValueError: the name does not end in .xml, or an int8 file came without images.
        ExportError: OpenVINO computes something else.
    """
    require(_EXTRA, "onnx,openvino", "OpenVINO export")
    import openvino

    out_file = Path(out_file)
    if out_file.suffix != ".xml":
        raise ValueError(f"{out_file} does not end in .xml, as OpenVINO's files do")
    with tempfile.TemporaryDirectory() as scratch:
        source_file = Path(onnx_file) if onnx_file else export_onnx(model, Path(scratch) / "model.onnx", images=images)
        reference = OnnxImageClassifier(source_file)
        if reference.is_int8 and not images:
            raise ValueError(f"{source_file} is int8; give images on which OpenVINO is to agree with onnxruntime")
        converted = openvino.convert_model(source_file)
    for key, value in reference.facts.items():
        converted.set_rt_info(value, ["model_info", key])
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=f".{out_file.name}.") as unchecked:
        written = Path(unchecked) / out_file.name
        openvino.save_model(converted, written, compress_to_fp16=False)
        run = _runner(written)
        if reference.is_int8:
            _check_classes(reference, run, images)
        else:
            check_logits(SourceModel.load(model), run, "openvino", images)
        # Without its .xml a .bin is nothing, so no moment has a pair of two halves.
        out_file.unlink(missing_ok=True)
        os.replace(written.with_suffix(".bin"), out_file.with_suffix(".bin"))
        os.replace(written, out_file)
    return out_file


def _runner(xml: Path) -> Callable[[Tensor], Tensor]:
    import openvino

    compiled = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixel_values: torch.from_numpy(compiled(pixel_values.numpy())[0].copy())


def _check_classes(
    reference: OnnxImageClassifier, run: Callable[[Tensor], Tensor], images: Sequence[Image.Image]
) -> None:
    """Two runtimes round an int8 network differently, so their classes are compared and not their logits."""
    same = 0
    for image in images:
        pixel_values = reference.prepare([image])
        same += int(run(pixel_values).argmax() == reference.logits(pixel_values).argmax())
    if same < LEAST_AGREEMENT * len(images):
        raise ExportError(
            f"OpenVINO and onnxruntime name the same class on only {same} of {len(images)} images; expected "
            f"{LEAST_AGREEMENT:.0%}. Nothing was written. Export without --int8, or use the ONNX file"
        )
