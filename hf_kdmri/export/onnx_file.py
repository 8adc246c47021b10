"""Export a model folder to one ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from hf_kdmri.export.checks import check_logits, require
from hf_kdmri.export.source import INPUT, OUTPUT, LogitsOnly, SourceModel, tracing
from hf_kdmri.whole_files import whole_file

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the dynamo exporter's own; onnxruntime and onnxruntime-web both run it
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(model_folder: str | Path, out_file: str | Path, *, images: Sequence[Image.Image] = ()) -> Path:
    """Export a classifier to one ONNX file: `pixel_values` (batch, 3, H, W) to `logits` (batch, C), batch dynamic.

    The exporter folds batch normalisation into the convolutions. The file carries labels, preprocessing and the rest of
    `SourceModel.facts` in its metadata. onnxruntime's logits are compared with PyTorch's on random inputs and on
    `images`, and the file is kept only if every one agrees within `TOLERANCE`.

    Args:
        model_folder: folder or Hub name of a timm_wrapper classifier.
        out_file: where the `.onnx` goes; folders are made, an existing file is replaced on success.
        images: real images to compare on as well, RGB.

    Returns:
        Path of the file.

    Raises:
        ImportError: the extra `onnx` is not installed.
        OSError: the model is not there, or the file cannot be written.
        ExportError: onnxruntime's logits differ from PyTorch's.
    """
    require(_EXTRA, "onnx", "ONNX export")
    import onnx

    out_file = Path(out_file)
    source = SourceModel.load(model_folder)
    with tracing():
        program = torch.onnx.export(
            LogitsOnly(source.model).eval(),
            (source.example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None  # it is, with dynamo=True
    proto = program.model_proto
    _forget_where_it_was_made(proto)
    onnx.helper.set_model_props(proto, source.facts())
    encoded = proto.SerializeToString()
    check_logits(source, _runner(encoded), "onnxruntime", images)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out_file) as stream:
        stream.write(encoded)
    return out_file


def _forget_where_it_was_made(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes on every node: stack traces, with the folders of the machine that exported."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    for function in proto.functions:
        for part in (function, *function.node):
            part.doc_string = ""
            del part.metadata_props[:]


def _runner(encoded: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: pixel_values.numpy()})
        return torch.from_numpy(logits)

    return run
