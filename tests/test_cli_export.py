from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_kdmri.cli import app
from tests.test_export import has_onnx, has_openvino, pictures, save_student


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_student(tmp_path_factory.mktemp("run") / "student", "test_resnet")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for index, picture in enumerate(pictures(12)):
        picture.convert("L").save(folder / f"{index}.png")
    rows = [f"{index}.png,{'glioma' if index % 2 else 'pituitary'}" for index in range(12)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return folder


@has_onnx
def test_int8_from_a_folder_then_predict_and_evaluate_with_the_file(student, scans, tmp_path) -> None:
    out = tmp_path / "int8.onnx"
    result = run(
        *("export", student, "--to", "onnx", "--int8", "--calibration", scans, "--calibration-images", 10),
        *("--labels", scans / "labels.csv", "--images", scans, "--out", out),
    )
    assert result.exit_code == 0, result.output
    assert "onnx, opset 18, dynamic batch, int8" in result.stdout
    assert "calibrated on 10 images" in result.stdout
    assert "a drop of" in result.stdout
    assert "12 labelled images are too few" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]
    answers = json.loads(run("predict", scans, "--model", out, "--format", "json").stdout)
    assert len(answers) == 12
    report = json.loads(
        run("evaluate", out, "--images", scans, "--labels", scans / "labels.csv", "--format", "json").stdout
    )
    truth = ["glioma" if int(Path(answer["file"]).stem) % 2 else "pituitary" for answer in answers]
    right = sum(answer["label"] == label for answer, label in zip(answers, truth, strict=True))
    assert report["accuracy"] == pytest.approx(right / 12)


@has_onnx
def test_predict_says_the_same_with_the_onnx_file(student, scans, tmp_path) -> None:
    result = run("export", student, "--to", "onnx", "--out", tmp_path / "s.onnx")
    assert result.exit_code == 0, result.output
    assert "onnx, opset 18, dynamic batch, checked against PyTorch" in result.stdout
    one, other = (
        json.loads(run("predict", scans, "--model", model, "--format", "json").stdout)
        for model in (student, tmp_path / "s.onnx")
    )
    for first, second in zip(one, other, strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-4)
    assert run("predict", scans, "--model", tmp_path / "s.onnx", "--device", "cuda").exit_code == 2
    assert run("predict", scans, "--model", tmp_path / "none.onnx").exit_code == 2


@has_onnx
@has_openvino
def test_openvino_alone_and_beside_onnx(student, scans, tmp_path) -> None:
    assert run("export", student, "--to", "openvino", "--out", tmp_path / "a.xml").exit_code == 0
    result = run(
        *("export", student, "--to", "onnx", "--openvino", "--int8", "--calibration", scans),
        *("--out", tmp_path / "b.onnx"),
    )
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.xml", "b.bin", "b.onnx", "b.xml"]


def test_torch(student, scans, tmp_path) -> None:
    result = run("export", student, "--to", "torch", "--calibration", scans, "--out", tmp_path / "s.pt2")
    assert result.exit_code == 0, result.output
    assert "torch.export, dynamic batch" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "onnx", "--int8", "--out", "s.onnx"], "--int8 needs training images"),
        (["--to", "torch", "--int8", "--out", "s.pt2"], "not with --to torch"),
        (["--to", "torch", "--openvino", "--out", "s.pt2"], "--openvino goes with --to onnx"),
        (["--to", "openvino", "--out", "s.onnx"], "does not end in .xml"),
        (["--to", "torch", "--images", ".", "--out", "s.pt2"], "--labels and --images belong together"),
        (["--to", "onnx", "--calibration", "tests", "--data-dir", "tests", "--out", "s.onnx"], "give one of them"),
        (["--to", "onnx", "--int8", "--calibration", "docs/figures/none", "--out", "s.onnx"], "does not exist"),
    ],
)
def test_wrong_usage_is_told_before_any_work(student, options, message, tmp_path, monkeypatch) -> None:
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("the extra onnx is not installed")
    result = run("export", student, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@has_onnx
def test_a_broken_calibration_image_is_named(student, tmp_path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.png").write_bytes(b"nothing")
    result = run(
        *("export", student, "--to", "onnx", "--int8", "--calibration", tmp_path / "scans"),
        *("--out", tmp_path / "s.onnx"),
    )
    assert result.exit_code == 1
    assert "broken.png cannot be read" in result.stderr
    assert not (tmp_path / "s.onnx").exists()


def test_images_without_int8_are_still_compared(student, tmp_path) -> None:
    """A folder without images is a mistake, also where nothing is calibrated."""
    (tmp_path / "empty").mkdir()
    result = run("export", student, "--to", "torch", "--calibration", tmp_path / "empty", "--out", tmp_path / "s.pt2")
    assert result.exit_code == 2
    assert "holds no images" in result.stderr
