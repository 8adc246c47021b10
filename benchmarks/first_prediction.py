"""One prediction in a fresh process, for the cold start that `inference.py` times; or as an example to copy from.

    python benchmarks/first_prediction.py onnx student.onnx slice.png

Prints JSON: the logits, and seconds since the epoch after importing, loading and predicting. The runtimes besides
`transformers` need neither that, nor timm, nor this package; `onnx` and `openvino` do not even need torch.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from PIL import Image


def prepare(path: str, preprocessing: dict[str, Any]) -> np.ndarray:
    """An 8-bit image as (1, 3, H, W), for students of this project: the whole picture is resized to the square."""
    if preprocessing["crop_mode"] != "squash" or preprocessing["crop_pct"] != 1:
        raise ValueError("the model crops its images; prepare them with timm.data.create_transform")
    _, height, width = preprocessing["input_size"]
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, dtype=np.float32) / 255 - preprocessing["mean"]) / preprocessing["std"]
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def with_transformers(model: str, image: str, compiled: bool = False) -> tuple[list[float], list[float]]:
    """A model folder in PyTorch, eager or compiled."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    moments = [time.time()]
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    classifier: Any = AutoModelForImageClassification.from_pretrained(model).eval()
    if compiled:
        classifier = torch.compile(classifier)
    moments.append(time.time())
    with torch.inference_mode():
        logits = classifier(**processor(Image.open(image).convert("RGB"), return_tensors="pt")).logits
    return logits[0].tolist(), moments


def with_torch_export(model: str, image: str) -> tuple[list[float], list[float]]:
    """A `.pt2` file in PyTorch alone."""
    import torch

    moments = [time.time()]
    extra = {"pretrained_cfg": ""}
    program = torch.export.load(model, extra_files=extra).module()
    moments.append(time.time())
    with torch.inference_mode():
        logits = program(torch.from_numpy(prepare(image, json.loads(extra["pretrained_cfg"]))))
    return logits[0].tolist(), moments


def with_onnx(model: str, image: str) -> tuple[list[float], list[float]]:
    """An `.onnx` file in onnxruntime."""
    import onnxruntime

    moments = [time.time()]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    preprocessing = json.loads(session.get_modelmeta().custom_metadata_map["pretrained_cfg"])
    moments.append(time.time())
    (logits,) = session.run(["logits"], {"pixel_values": prepare(image, preprocessing)})
    return logits[0].tolist(), moments


def with_openvino(model: str, image: str) -> tuple[list[float], list[float]]:
    """An `.xml` file in OpenVINO, in float32."""
    import openvino

    moments = [time.time()]
    core = openvino.Core()
    network = core.read_model(model)
    preprocessing = json.loads(network.get_rt_info(["model_info", "pretrained_cfg"]).astype(str))
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    moments.append(time.time())
    logits = compiled(prepare(image, preprocessing))[0]
    return logits[0].tolist(), moments


RUNTIMES = {
    "transformers": with_transformers,
    "transformers-compiled": lambda model, image: with_transformers(model, image, compiled=True),
    "torch.export": with_torch_export,
    "onnx": with_onnx,
    "openvino": with_openvino,
}


def main() -> None:
    """Predict once."""
    runtime, model, image = sys.argv[1:]
    logits, moments = RUNTIMES[runtime](model, image)
    imported, loaded, predicted = *moments, time.time()
    print(json.dumps({"logits": logits, "imported": imported, "loaded": loaded, "predicted": predicted}))


if __name__ == "__main__":
    main()
