"""From images to probabilities with an ONNX file of `kdmri export`, in place of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TimmWrapperImageProcessor

from hf_kdmri.inference import ImageClassifier

_NEEDED = ("labels", "pretrained_cfg")


class OnnxImageClassifier(ImageClassifier):
    """An ONNX file on onnxruntime's CPU provider, with labels and preprocessing from its metadata.

    Args:
        model: `.onnx` file written by `kdmri export`.
        device: `cpu`; there is no other.
        calibrated: divide the logits by the temperature that the file carries.
        threads: that onnxruntime computes with; default is one for each core.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is missing, no ONNX model or not one of ours, another device is asked for, or `calibrated`
            and there is no temperature in it.
    """

    def __init__(
        self, model: str | Path, device: str = "cpu", *, calibrated: bool = False, threads: int | None = None
    ) -> None:
        if device != "cpu":
            raise ValueError(
                f"ONNX files run on the CPU here, not on {device!r}; give the model folder for another device"
            )
        self.session = _open(Path(model), threads)
        self.facts: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if missing := [key for key in _NEEDED if key not in self.facts]:
            raise ValueError(f"{model} lacks the metadata {', '.join(missing)}; write it with kdmri export")
        self.labels = json.loads(self.facts["labels"])
        self.processor = TimmWrapperImageProcessor(json.loads(self.facts["pretrained_cfg"]))
        if calibrated and "temperature" not in self.facts:
            raise ValueError(
                f"{model} has no temperature: none was stored in the folder before exporting, or it is int8"
            )
        self.temperature = float(self.facts["temperature"]) if calibrated else None

    @property
    def is_int8(self) -> bool:
        """Whether the file was quantised by `quantize_onnx`."""
        return "quantization" in self.facts

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C) of a prepared batch, divided by the temperature if there is one."""
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        return torch.from_numpy(logits if self.temperature is None else logits / np.float32(self.temperature))


def _open(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as raised
    except ImportError as error:
        raise ImportError(f"running {path} needs onnxruntime: pip install 'hf_kdmri[onnx]'") from error
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (raised.InvalidProtobuf, raised.InvalidGraph, raised.InvalidArgument, raised.Fail) as error:
        raise ValueError(f"{path} is no ONNX model that onnxruntime can run: {error}") from error
