from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from hf_kdmri import StudentForImageClassification
from hf_kdmri.hub import ExportError, export_onnx, onnx_export

has_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
LABELS = ["meningioma", "glioma", "pituitary"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    model = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64)
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    return model, folder


@has_extra
def test_the_file_computes_what_the_student_computes(student, tmp_path) -> None:
    import onnxruntime

    model, folder = student
    path = export_onnx(folder, tmp_path / "new" / "student.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["student.onnx"]  # one file, no external data
    session = onnxruntime.InferenceSession(path)
    pixel_values = torch.randn(5, 3, 64, 64)
    (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(pixel_values).logits.numpy(), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["pretrained_cfg"])["input_size"] == [3, 64, 64]


@has_extra
def test_a_file_that_computes_something_else_is_not_kept(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    (tmp_path / "student.onnx").write_text("from before")
    with pytest.raises(ExportError, match="differ from PyTorch's by"):
        export_onnx(student[1], tmp_path / "student.onnx")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["from before"]


def test_a_missing_extra_names_the_way_out(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "_EXTRA", ("onnx_is_not_here",))
    with pytest.raises(ImportError, match=r"pip install 'hf_kdmri\[onnx\]'"):
        export_onnx(student[1], tmp_path / "student.onnx")
