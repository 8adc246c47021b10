"""The ONNX export under the name that it had before `hf_kdmri.export`."""

from hf_kdmri.export.checks import ExportError
from hf_kdmri.export.onnx_file import OPSET, export_onnx

__all__ = ["OPSET", "ExportError", "export_onnx"]
