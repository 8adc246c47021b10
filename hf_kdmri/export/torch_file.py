"""Export a model folder with `torch.export`, to run it with torch alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from hf_kdmri.export.checks import check_logits
from hf_kdmri.export.source import INPUT, LogitsOnly, SourceModel, tracing
from hf_kdmri.whole_files import whole_file


def export_torch(model_folder: str | Path, out_file: str | Path, *, images: Sequence[Image.Image] = ()) -> Path:
    """Export a classifier to a `.pt2` file: pixel values (batch, 3, H, W) to logits (batch, C), batch dynamic.

    `torch.export.load(file).module()` is the model. The facts of `SourceModel.facts` are extra files of the archive.
    The file is loaded again and compared with the model before it is kept.

    Args:
        model_folder: folder or Hub name of a timm_wrapper classifier.
        out_file: where the `.pt2` goes; folders are made, an existing file is replaced on success.
        images: real images to compare on as well, RGB.

    Returns:
        Path of the file.

    Raises:
        OSError: the model is not there, or the file cannot be written.
        ExportError: the loaded program's logits differ from the model's.
    """
    out_file = Path(out_file)
    source = SourceModel.load(model_folder)
    with tracing():
        program = torch.export.export(
            LogitsOnly(source.model).eval(),
            (source.example,),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        )
    _forget_where_it_was_made(program)
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files=source.facts())
    archive.seek(0)
    with torch.no_grad():
        check_logits(source, torch.export.load(archive).module(), "torch.export", images)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out_file) as stream:
        stream.write(archive.getvalue())
    return out_file


def _forget_where_it_was_made(program: torch.export.ExportedProgram) -> None:
    """Leave out which files of this machine each operation is from; branches of a program note it as well."""
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                node.meta.pop("stack_trace", None)
