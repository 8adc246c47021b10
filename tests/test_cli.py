from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

from hf_kdmri import StudentForImageClassification
from hf_kdmri.cli import app
from hf_kdmri.data.pictures import PictureError, find_images
from hf_kdmri.inference import read_image

LABELS = ["meningioma", "glioma", "pituitary"]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "student"
    StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64).save_pretrained(folder)
    return folder


def slice_pixels(seed: int, high: int = 255) -> np.ndarray:
    y, x = np.mgrid[:60, :50]
    return (high * np.clip(1 - ((x - 25) / 20) ** 2 - ((y - 20 - seed) / 30) ** 2, 0, 1)).astype(int)


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(slice_pixels(0).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(slice_pixels(5).astype(np.uint8)).convert("RGBA").save(folder / "deep" / "b.PNG")
    Image.fromarray(slice_pixels(9).astype(np.uint8)).save(folder / "c, d.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_csv_has_the_pipelines_numbers(model, scans) -> None:
    result = run("predict", scans, "--model", model, "--format", "csv", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["file", "label", "score", *LABELS]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "c, d.jpg", "b.PNG"]
    classify = pipeline("image-classification", model=str(model))
    for row in rows:
        expected = {answer["label"]: answer["score"] for answer in classify(row["file"])}
        assert {label: float(row[label]) for label in LABELS} == pytest.approx(expected, abs=2e-6)
        assert row["label"] == max(expected, key=expected.get)
        assert row["score"] == row[row["label"]]


def test_json_and_table_say_the_same(model, scans) -> None:
    answers = json.loads(run("predict", scans, "-m", model, "--format", "json").stdout)
    assert [set(answer) for answer in answers] == [{"file", "label", "score", "scores"}] * 3
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
    head, *lines = run("predict", scans, "-m", model).stdout.splitlines()
    assert head.split() == ["label", "score", "file"]
    assert [line.split()[0] for line in lines] == [answer["label"] for answer in answers]


def test_broken_files_are_listed_and_the_others_classified(model, scans) -> None:
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    (scans / "cut.png").write_bytes((scans / "a.png").read_bytes()[:90])
    frames = [Image.new("L", (9, 9), shade) for shade in (0, 99)]
    frames[0].save(scans / "volume.tiff", save_all=True, append_images=frames[1:])
    result = run("predict", scans, "-m", model, "--format", "json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 3
    assert "3 of 6 files could not be classified" in result.stderr
    for name in ("broken.png: cannot be read", "cut.png: cannot be read", "volume.tiff: holds 2 frames"):
        assert name in result.stderr


@pytest.mark.parametrize("wide", [np.uint16, np.float32, np.int32])
def test_more_than_8_bits_are_windowed_not_saturated(wide, model, tmp_path) -> None:
    raw = slice_pixels(3, high=4000).astype(wide)
    Image.fromarray(raw).save(tmp_path / "wide.tiff")
    pixels = np.asarray(read_image(tmp_path / "wide.tiff"))
    low, high = np.percentile(raw.astype(np.float64), (0.1, 99.9))
    expected = np.rint((np.clip(raw, low, high) - low) * 255 / (high - low))
    assert pixels.shape == (60, 50, 3)
    np.testing.assert_allclose(pixels[..., 1], expected, atol=1)
    assert run("predict", tmp_path / "wide.tiff", "-m", model).exit_code == 0


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [(np.full((8, 8), np.nan, np.float32), "not finite"), (np.full((8, 8), 700, np.uint16), "constant")],
)
def test_wide_images_without_content_are_refused(pixels, reason, tmp_path) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    with pytest.raises(PictureError, match=reason):
        read_image(tmp_path / "x.tiff")


def test_exif_orientation_is_applied(tmp_path) -> None:
    image = Image.new("L", (20, 10), 0)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)


def test_folders_are_walked_lazily(scans) -> None:
    assert next(find_images(scans)) == scans / "a.png"


def test_predict_names_what_is_wrong(model, scans, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty", "-m", model), "holds no images"),
        ((tmp_path / "absent", "-m", model), "does not exist"),
        ((scans, "-m", tmp_path / "empty"), "cannot load a classifier"),
        ((scans, "-m", model, "--device", "warp"), "cannot use the device 'warp'"),
    ):
        result = run("predict", *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr
        assert result.stdout == ""


def write_labels(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_evaluate_scores_by_name_and_by_patient(model, scans, tmp_path) -> None:
    answers = json.loads(run("predict", scans, "-m", model, "--format", "json").stdout)
    predicted = {Path(answer["file"]).name: answer["label"] for answer in answers}
    wrong = next(label for label in LABELS if label != predicted["c, d.jpg"])
    labels = write_labels(
        tmp_path / "labels.csv",
        "file,label,patient",
        f"a.png,{predicted['a.png']},p1",
        f"deep/b.PNG,{predicted['b.PNG']},p2",
        f'"c, d.jpg",{wrong},p3',
    )
    result = run("evaluate", model, "--images", scans, "--labels", labels, "--format", "json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["patients"]["n"] == 3
    table = run("evaluate", model, "--images", scans, "--labels", labels).stdout
    assert "3 slices: accuracy 66.7%" in table
    assert "3 patients: accuracy 66.7%" in table


def test_evaluate_leaves_broken_files_out_and_says_so(model, scans, tmp_path) -> None:
    (scans / "broken.png").write_bytes(b"nothing")
    labels = write_labels(tmp_path / "labels.csv", "file,label", "a.png,glioma", "broken.png,glioma")
    result = run("evaluate", model, "--images", scans, "--labels", labels, "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["n"] == 1
    assert "1 of 2 files could not be classified" in result.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["file,class", "a.png,glioma"], "lacks the column label; it has file, class"),
        (["file,label"], "header but no rows"),
        (["file,label", "a.png,1"], "line 2: unknown label '1'; the model knows meningioma, glioma, pituitary"),
        (["file,label", "z.png,glioma"], "line 2: there is no file 'z.png'"),
        (["file,label", "../labels.csv,glioma"], "there is no file '../labels.csv'"),
        (["file,label", "a.png,glioma", "a.png,glioma"], "line 3: 'a.png' is listed twice"),
        (["file,label,patient", "a.png,glioma,"], "the patient is empty"),
        (["file,label,patient", "a.png,glioma,p", "deep/b.PNG,pituitary,p"], "patient 'p' has two labels"),
    ],
)
def test_bad_label_files_are_refused_by_line(rows, message, model, scans, tmp_path) -> None:
    result = run("evaluate", model, "--images", scans, "--labels", write_labels(tmp_path / "labels.csv", *rows))
    assert result.exit_code == 2
    assert message in result.stderr


def test_export_and_its_failure(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hf_kdmri.hub.onnx_export._EXTRA", ("onnx_is_not_here",))
    result = run("export", model, "--to", "onnx", "--out", tmp_path / "s.onnx")
    assert result.exit_code == 1
    assert "pip install 'hf_kdmri[onnx]'" in result.stderr


def test_push_dry_run_lists_the_students_files(model) -> None:
    result = run("push", model.parent, "--to", "jane/kdmri-student", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "config.json" in result.stdout
    assert "2 files would be sent to jane/kdmri-student" in result.stdout
    assert run("push", model.parent, "--to", "nowhere", "--dry-run").exit_code == 2
    assert "config.json and model.safetensors missing" in run("push", model.parent.parent, "--to", "j/x").stderr


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "push"])
def test_every_command_has_an_example(command) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: kdmri {command}" in " ".join(result.stdout.split())
    assert "Exit codes: 0" in run("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, hf_kdmri.cli; print([m for m in ('torch', 'transformers', 'timm', 'numpy') if m in sys.modules])"
    )
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
    assert time.perf_counter() - start < 10
