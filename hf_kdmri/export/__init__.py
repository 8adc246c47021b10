"""A model in formats of other runtimes, each file compared with PyTorch before anyone uses it."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ExportError": "checks",
    "TOLERANCE": "checks",
    "OPSET": "onnx_file",
    "export_onnx": "onnx_file",
    "QuantizationReport": "int8",
    "quantize_onnx": "int8",
    "export_openvino": "openvino_file",
    "export_torch": "torch_file",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a runtime that is not asked for is not imported."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'hf_kdmri.export' has no attribute {name!r}; its public names are {', '.join(_HOME)}"
        )
    return getattr(importlib.import_module(f"hf_kdmri.export.{_HOME[name]}"), name)
