from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_kdmri import StudentForImageClassification
from hf_kdmri.export import ExportError, checks, export_onnx, export_openvino, export_torch, onnx_file
from hf_kdmri.export.source import SourceModel
from hf_kdmri.inference import ImageClassifier, save_temperature
from tests.conftest import LABELS, ROOT

has_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
has_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)
TINY = [
    "test_vit",
    "test_resnet",
    "test_efficientnet",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("test_convnext", "test_byobnet", "mobilenetv4_conv_small", "efficientvit_m0", "efficientvit_b0")
    ),
]


def save_student(folder: Path, architecture: str = "test_vit", size: int = 64) -> Path:
    """A student whose batch normalisation has seen data, so that leaving it out or folding it wrongly shows."""
    torch.manual_seed(0)
    model = StudentForImageClassification.from_timm(architecture, labels=LABELS, image_size=size).train()
    with torch.no_grad():
        for _ in range(4):
            model(2 * torch.randn(8, 3, size, size) + 0.5)
    model.eval().save_pretrained(folder)
    return folder


def pictures(count: int, size: int = 64) -> list[Image.Image]:
    """Blobs at random places in noise."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    images = []
    for _ in range(count):
        row, column, width = *draw.uniform(10, size - 10, 2), draw.uniform(3, 12)
        pixels = 200 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2)) + draw.uniform(
            0, 50, (size, size)
        )
        images.append(Image.fromarray(pixels.astype(np.uint8)).convert("RGB"))
    return images


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_student(tmp_path_factory.mktemp("figshare") / "student")


@has_onnx
@pytest.mark.parametrize("architecture", TINY)
def test_onnx_computes_what_the_student_computes(architecture, tmp_path) -> None:
    import onnxruntime

    folder = save_student(tmp_path / "student", architecture)
    path = export_onnx(folder, tmp_path / "new" / "student.onnx", images=pictures(2))
    assert [file.name for file in path.parent.iterdir()] == ["student.onnx"]  # one file, no external data
    session = onnxruntime.InferenceSession(path)
    model = StudentForImageClassification.from_pretrained(folder).eval()
    for batch in (1, 5):
        pixel_values = torch.randn(batch, 3, 64, 64)
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(logits, model(pixel_values).logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("architecture", TINY)
def test_torch_export_is_loaded_again_and_agrees(architecture, tmp_path) -> None:
    folder = save_student(tmp_path / "student", architecture)
    path = export_torch(folder, tmp_path / "student.pt2", images=pictures(2))
    extra = {"labels": "", "pretrained_cfg": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for place in (Path(torch.__file__).parents[1], ROOT):
        assert str(place).encode() not in path.read_bytes(), "whoever gets the file learns nothing of this machine"
    assert json.loads(extra["labels"]) == LABELS
    pixel_values = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = StudentForImageClassification.from_pretrained(folder).eval()(pixel_values).logits
        torch.testing.assert_close(program(pixel_values), expected, atol=1e-4, rtol=0)


@has_onnx
@has_openvino
def test_openvino_is_one_pair_with_the_facts_of_the_model(student, tmp_path) -> None:
    import openvino

    path = export_openvino(student, tmp_path / "student.xml", images=pictures(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student.bin", "student.xml"]
    model = openvino.Core().read_model(path)
    assert model.input(0).partial_shape.to_string() == "[?,3,64,64]"
    assert json.loads(model.get_rt_info(["model_info", "labels"]).astype(str)) == LABELS
    with pytest.raises(ValueError, match=r"does not end in \.xml"):
        export_openvino(student, tmp_path / "student.onnx")


@has_onnx
def test_the_file_says_what_it_is(tmp_path) -> None:
    import onnxruntime

    folder = save_student(tmp_path / "run" / "student")
    save_temperature(folder, 1.5)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    facts = onnxruntime.InferenceSession(export_onnx(folder, tmp_path / "s.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == LABELS
    assert json.loads(facts["pretrained_cfg"])["input_size"] == [3, 64, 64]
    assert float(facts["temperature"]) == 1.5
    assert facts["model_name"] == "run/student"
    assert facts["architecture"] == "test_vit"
    assert facts["license"] == "apache-2.0"
    assert "not a medical device" in facts["notice"]
    assert facts["hf_kdmri_version"]


@has_onnx
def test_the_file_does_not_tell_where_it_was_made(student, tmp_path) -> None:
    """The exporter notes a stack trace on every node."""
    encoded = export_onnx(student, tmp_path / "s.onnx").read_bytes()
    for folder in (ROOT, Path(sys.prefix), tmp_path):
        assert str(folder).encode() not in encoded


@has_onnx
@has_openvino
def test_a_file_that_computes_something_else_is_not_kept(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    for name, export in (("s.onnx", export_onnx), ("s.xml", export_openvino), ("s.pt2", export_torch)):
        (tmp_path / name).write_text("from before")
        with pytest.raises(ExportError, match="differ from PyTorch's by"):
            export(student, tmp_path / name)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["from before"] * 3


@has_onnx
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_the_onnx_classifier_says_what_the_folder_says(architecture, tmp_path) -> None:
    from hf_kdmri.onnx_inference import OnnxImageClassifier

    folder = save_student(tmp_path / "student", architecture)
    save_temperature(folder, 0.5)
    path = export_onnx(folder, tmp_path / "s.onnx")
    for calibrated in (False, True):
        expected = ImageClassifier(str(folder), calibrated=calibrated)
        classifier = OnnxImageClassifier(path, calibrated=calibrated, threads=1)
        assert classifier.labels == expected.labels
        images = [*pictures(2), pictures(1, size=90)[0]]
        np.testing.assert_allclose(classifier.probabilities(images), expected.probabilities(images), atol=1e-4)


@has_onnx
def test_the_example_needs_no_torch(student, tmp_path) -> None:
    path = export_onnx(student, tmp_path / "s.onnx")
    pictures(1, size=90)[0].convert("L").save(tmp_path / "slice.png")
    script = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'timm', 'transformers', 'hf_kdmri']));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "benchmarks/first_prediction.py", "onnx", path, tmp_path / "slice.png"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    source = SourceModel.load(student)
    expected = source.logits(source.prepare([Image.open(tmp_path / "slice.png").convert("RGB")]))[0]
    assert json.loads(done.stdout)["logits"] == pytest.approx(expected.tolist(), abs=1e-4)


@has_onnx
def test_what_the_onnx_classifier_refuses(student, tmp_path) -> None:
    import onnx

    from hf_kdmri.onnx_inference import OnnxImageClassifier

    path = export_onnx(student, tmp_path / "s.onnx")
    with pytest.raises(ValueError, match="run on the CPU here, not on 'cuda'"):
        OnnxImageClassifier(path, "cuda")
    with pytest.raises(ValueError, match="has no temperature"):
        OnnxImageClassifier(path, calibrated=True)
    with pytest.raises(ValueError, match="there is no file"):
        OnnxImageClassifier(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no ONNX model that onnxruntime can run"):
        OnnxImageClassifier(tmp_path / "broken.onnx")
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save_model(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="lacks the metadata labels, pretrained_cfg; write it with kdmri export"):
        OnnxImageClassifier(tmp_path / "foreign.onnx")


def test_a_missing_extra_names_the_way_out(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXTRA", ("onnx_is_not_here",))
    with pytest.raises(ImportError, match=r"pip install 'hf_kdmri\[onnx\]'"):
        export_onnx(student, tmp_path / "student.onnx")
