"""The student in each runtime that `inference.py` times: pixel values in, logits out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_kdmri.export.source import INPUT, SourceModel

EAGER = "PyTorch eager"
NAMES = (
    EAGER,
    "PyTorch eager, channels_last",
    "PyTorch bfloat16, channels_last",
    "PyTorch compiled",
    "ONNX float32",
    "ONNX int8",
    "OpenVINO float32",
    "OpenVINO bfloat16",
    "OpenVINO int8",
)


@dataclass
class Runtime:
    """One way to run the student.

    Attributes:
        run: pixel values (B, 3, H, W) float32 to logits (B, C).
        latencies: seconds of every counted call, round by round.
    """

    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    latencies: list[list[float]] = field(default_factory=list)

    def time_block(self, pixel_values: NDArray[np.float32], seconds: float, warmup: int) -> None:
        """Call it for so many seconds, 2 times at least, after calls that do not count; keep each call's time."""
        for _ in range(warmup):
            self.run(pixel_values)
        block: list[float] = []
        end = time.perf_counter() + seconds
        while len(block) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            self.run(pixel_values)
            block.append(time.perf_counter() - start)
        self.latencies.append(block)


def build_runtimes(
    names: list[str], source: SourceModel, float32: Path, int8: Path, threads: int
) -> dict[str, Runtime]:
    """Load the student into each of the named runtimes.

    Args:
        names: of `NAMES`.
        source: the student in PyTorch.
        float32: its ONNX file.
        int8: the same in int8.
        threads: that each computes with.
    """
    torch.set_num_threads(threads)
    makers: dict[str, Callable[[], Callable[..., Any]]] = {
        EAGER: lambda: _torch(source, torch.contiguous_format, torch.float32),
        "PyTorch eager, channels_last": lambda: _torch(source, torch.channels_last, torch.float32),
        "PyTorch bfloat16, channels_last": lambda: _torch(source, torch.channels_last, torch.bfloat16),
        "PyTorch compiled": lambda: _torch(source, torch.contiguous_format, torch.float32, compiled=True),
        "ONNX float32": lambda: _onnx(float32, threads),
        "ONNX int8": lambda: _onnx(int8, threads),
        "OpenVINO float32": lambda: _openvino(float32, threads, "f32"),
        "OpenVINO bfloat16": lambda: _openvino(float32, threads, "bf16"),
        "OpenVINO int8": lambda: _openvino(int8, threads, "f32"),
    }
    return {name: Runtime(makers[name]()) for name in names}


def _torch(
    source: SourceModel, layout: torch.memory_format, dtype: torch.dtype, compiled: bool = False
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    model: Any = copy.deepcopy(source.model)
    model = model.to(dtype=dtype, memory_format=layout)
    if compiled:
        torch.compiler.reset()  # else kernels for another number of threads, or none after several batch sizes
        model = torch.compile(model, dynamic=False)  # a kernel for each batch size, as one would deploy it

    @torch.inference_mode()
    def run(pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        given: Tensor = torch.from_numpy(pixel_values).to(dtype=dtype, memory_format=layout)
        return model(pixel_values=given).logits.float().numpy()

    return run


def _onnx(path: Path, threads: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads that spin would slow whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {INPUT: pixel_values})[0]


def _openvino(path: Path, threads: int, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda pixel_values: compiled(pixel_values)[0]
