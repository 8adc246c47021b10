"""Export a model folder to ONNX and check the result against PyTorch before anyone uses it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

OPSET = 18  # the dynamo exporter's own; onnxruntime and onnxruntime-web both run it
TOLERANCE = 1e-4  # largest difference of a logit
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """The exported file does not compute what the model computes."""


class _Logits(nn.Module):
    """The model with a tensor, not a `ModelOutput`, as its result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def export_onnx(model_folder: str | Path, out_file: str | Path) -> Path:
    """Export a classifier to one ONNX file: `pixel_values` (batch, 3, H, W) to `logits` (batch, C), batch dynamic.

    The file carries labels and preprocessing (`labels`, `pretrained_cfg`, JSON) in its metadata. It is compared with
    PyTorch on random inputs of batch 1 and 3 and kept only if every logit agrees within `TOLERANCE`.

    Args:
        model_folder: Folder or Hub name of a timm_wrapper classifier.
        out_file: Where the `.onnx` goes; folders are made, an existing file is replaced on success.

    Returns:
        Path of the file.

    Raises:
        ImportError: The extra `onnx` is not installed.
        ExportError: onnxruntime's logits differ from PyTorch's.
    """
    if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: pip install 'hf_kdmri[onnx]'")
    import onnx

    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    model = AutoModelForImageClassification.from_pretrained(model_folder).eval()
    preprocessing = model.config.pretrained_cfg
    example = torch.randn(2, *preprocessing["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            _Logits(model).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None  # it is, with dynamo=True
    proto = program.model_proto
    onnx.helper.set_model_props(
        proto,
        {
            "labels": json.dumps([model.config.id2label[index] for index in range(model.config.num_labels)]),
            "pretrained_cfg": json.dumps(preprocessing),
        },
    )
    unchecked = out_file.with_name(out_file.name + ".unchecked")
    onnx.save_model(proto, unchecked)
    try:
        _compare(model, unchecked, example)
    except ExportError:
        unchecked.unlink()
        raise
    return unchecked.replace(out_file)


def _compare(model: PreTrainedModel, onnx_file: Path, example: Tensor) -> None:
    """Raise unless onnxruntime and PyTorch agree on batches of sizes other than the exported one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3):
        pixel_values = torch.randn(batch, *example.shape[1:], generator=generator)
        with torch.inference_mode():
            expected = model(pixel_values=pixel_values).logits
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        difference = (torch.from_numpy(logits) - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise ExportError(
                f"ONNX logits differ from PyTorch's by {difference:.2e} at batch {batch}; allowed is {TOLERANCE}. "
                f"Nothing was written. Report the architecture {model.config.architecture!r} with the versions of "
                "torch and onnxscript."
            )
