from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from hf_kdmri.export import ExportError, export_onnx, export_openvino, quantize_onnx
from hf_kdmri.export.source import SourceModel
from hf_kdmri.inference import save_temperature
from tests.test_export import TINY, has_openvino, pictures, save_student

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    """An untrained network that names each class about as often."""
    folder = tmp_path_factory.mktemp("figshare")
    student = SourceModel.load(save_student(folder / "student", "test_resnet"))
    with torch.no_grad():
        student.model.timm_model.get_classifier().bias -= student.logits(student.prepare(pictures(100))).mean(dim=0)
    student.model.save_pretrained(folder / "student")
    save_temperature(folder / "student", 1.5)
    return export_onnx(folder / "student", folder / "float32.onnx")


def labelled(onnx_file, count: int) -> list[tuple[Image.Image, int]]:
    """Pictures with what the float32 file says of them as the truth, so that it is right on all."""
    from hf_kdmri.onnx_inference import OnnxImageClassifier

    images = pictures(count)
    return list(zip(images, OnnxImageClassifier(onnx_file).probabilities(images).argmax(1).tolist(), strict=True))


@pytest.mark.parametrize("architecture", TINY)
def test_int8_is_near_float32_at_every_batch_size(architecture, tmp_path) -> None:
    import onnx

    from hf_kdmri.onnx_inference import OnnxImageClassifier

    source = export_onnx(save_student(tmp_path / "student", architecture), tmp_path / "float32.onnx")
    images = pictures(24)
    if architecture == "test_vit" and Version(version("onnxruntime")) < Version("1.32"):
        with pytest.raises(ExportError, match=r"computes this network wrongly in 8 bits.*Update onnxruntime"):
            quantize_onnx(source, tmp_path / "new" / "int8.onnx", images, source="blobs")
        assert not (tmp_path / "new").exists()
        return
    report = quantize_onnx(source, tmp_path / "new" / "int8.onnx", images, source="blobs")
    before, after = OnnxImageClassifier(source), OnnxImageClassifier(tmp_path / "new" / "int8.onnx")
    graph = onnx.load(tmp_path / "new" / "int8.onnx").graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)
    pixel_values = before.prepare(images)
    expected, logits = before.logits(pixel_values), after.logits(pixel_values)
    # An untrained network's logits of such pictures lie close together, so their spread over pictures is the yardstick.
    assert (logits - expected).abs().mean() < 0.5 * expected.std(dim=0).mean() + 0.1 * expected.abs().mean()
    np.testing.assert_allclose(after.logits(pixel_values[:1])[0], logits[0], atol=1e-3)
    assert (report.calibration_images, report.measured_images, report.drop) == (24, 24, None)
    assert "no accuracy" in report.describe()


def test_the_file_keeps_its_facts_and_what_was_measured(float32, tmp_path) -> None:
    from hf_kdmri.onnx_inference import OnnxImageClassifier

    pairs = labelled(float32, 40)
    report = quantize_onnx(float32, tmp_path / "int8.onnx", pictures(16), labelled=pairs, source="blobs")
    facts, before = OnnxImageClassifier(tmp_path / "int8.onnx").facts, OnnxImageClassifier(float32).facts
    stored = json.loads(facts.pop("quantization"))
    assert before.pop("temperature") == "1.5"  # fitted on float32's logits
    assert facts == before
    assert stored["source"] == "blobs"
    assert stored["measured_images"] == 40
    assert stored["accuracy_float32"] == 1
    assert stored["accuracy_int8"] == report.accuracy_int8 == report.agreement
    assert report.drop == pytest.approx(100 - 100 * report.agreement)
    assert not report.is_enough  # 40 images cannot tell
    assert (tmp_path / "int8.onnx").stat().st_size < float32.stat().st_size


def test_a_loss_of_accuracy_is_refused_unless_allowed(float32, tmp_path) -> None:
    pairs = labelled(float32, 300)
    # Ranges found on black pictures do not hold the activations of others.
    black = [Image.new("RGB", (64, 64))] * 8
    (tmp_path / "int8.onnx").write_text("from before")
    with pytest.raises(ExportError, match=r"images more than float32.*a drop of .* points; allowed are 0\.3\."):
        quantize_onnx(float32, tmp_path / "int8.onnx", black, labelled=pairs)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["from before"]
    report = quantize_onnx(float32, tmp_path / "int8.onnx", black, labelled=pairs, max_drop=None)
    assert report.is_enough
    assert report.drop > 0.3


def test_what_cannot_be_quantised(float32, tmp_path) -> None:
    with pytest.raises(ValueError, match="needs calibration images, and there are none"):
        quantize_onnx(float32, tmp_path / "int8.onnx", [])
    quantize_onnx(float32, tmp_path / "int8.onnx", pictures(8))
    with pytest.raises(ValueError, match="is int8 already"):
        quantize_onnx(tmp_path / "int8.onnx", tmp_path / "again.onnx", pictures(8))


def test_weights_of_7_bits(float32, tmp_path) -> None:
    import onnx

    quantize_onnx(float32, tmp_path / "int8.onnx", pictures(8), reduce_range=True)
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert weights
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


@has_openvino
def test_openvino_of_an_int8_file(float32, tmp_path) -> None:
    import openvino

    quantize_onnx(float32, tmp_path / "int8.onnx", pictures(16))
    student = float32.parent / "student"
    with pytest.raises(ValueError, match="is int8; give images"):
        export_openvino(student, tmp_path / "s.xml", onnx_file=tmp_path / "int8.onnx")
    path = export_openvino(student, tmp_path / "s.xml", onnx_file=tmp_path / "int8.onnx", images=pictures(16))
    constants = [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "Constant"]
    assert any(constant.get_output_element_type(0) == openvino.Type.i8 for constant in constants)
