"""A model in formats of other runtimes, each file compared with PyTorch before anyone uses it."""

from __future__ import annotations

from hf_kdmri.lazy_names import lazy_names

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
__getattr__ = lazy_names(__name__, _HOME)  # so that a runtime that is not asked for is not imported
