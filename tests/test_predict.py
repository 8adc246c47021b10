"""`kdmri predict`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from picture_mutations import dicom_bytes
from PIL import Image
from transformers import pipeline

from hf_kdmri.data.pictures import PictureError, find_images
from hf_kdmri.inference import read_image, save_temperature
from tests.cli_cases import run, save_model, slice_pixels, write_labels, write_scans
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture
def scans(tmp_path) -> Path:
    return write_scans(tmp_path / "scans")


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
        assert row["label"] == max(expected, key=expected.__getitem__)
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


def test_files_folders_and_patterns_together(model, scans) -> None:
    given = (scans / "deep", scans / "a.png", scans / "*.jpg", scans / "**" / "b.*")
    rows = json.loads(run("predict", *given, "-m", model, "--json").stdout)
    assert [Path(row["file"]).name for row in rows] == ["b.PNG", "a.png", "c, d.jpg", "b.PNG"]
    assert rows[0] == rows[3]
    bracketed = (scans / "a.png").rename(scans / "a[1].png")
    assert run("predict", bracketed, "-m", model).exit_code == 0, "a file's own name is no pattern"


def test_what_is_not_there_is_named_and_the_rest_classified(model, scans, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    given = (tmp_path / "empty", scans / "a.png", scans / "gone.png", scans / "*.gif")
    result = run("predict", *given, "-m", model, "--csv")
    assert result.exit_code == 1
    assert [row["file"] for row in csv.DictReader(io.StringIO(result.stdout))] == [str(scans / "a.png")]
    assert "3 of 4 files could not be classified" in result.stderr
    for told in ("empty: holds no images", "gone.png: does not exist", "*.gif: does not exist"):
        assert told in result.stderr


def test_nothing_is_printed_above_nothing(model, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    result = run("predict", tmp_path / "broken.png", "-m", model)
    assert result.exit_code == 1 and result.stdout == ""
    assert "1 of 1 file could not be classified" in result.stderr
    assert json.loads(run("predict", tmp_path / "broken.png", "-m", model, "--json").stdout) == []


def test_formats_have_short_names_that_exclude_each_other(model, scans) -> None:
    for form in ("json", "csv"):
        short = run("predict", scans, "-m", model, f"--{form}")
        assert short.exit_code == 0
        assert short.stdout == run("predict", scans, "-m", model, "--format", form, f"--{form}").stdout
    refused = run("predict", scans, "-m", model, "--json", "--csv")
    assert refused.exit_code == 2 and "csv and json are asked for; give one format" in refused.stderr


def test_pictures_with_few_grey_levels_are_pointed_out(model, scans) -> None:
    Image.new("L", (60, 50), 80).save(scans / "blank.png")
    Image.fromarray(slice_pixels(0).astype(np.uint8)).convert("1").save(scans / "mask.png")
    few = np.linspace(0, 4000, 15).astype(np.uint16)[slice_pixels(0, high=14)]
    Image.fromarray(few).save(scans / "few16.png")
    enough = np.linspace(0, 255, 16).astype(np.uint8)[slice_pixels(0, high=15)]
    Image.fromarray(enough).save(scans / "enough.png")
    result = run("predict", scans, "-m", model, "--json")
    assert result.exit_code == 0, "a doubt is no failure"
    warned = {Path(row["file"]).name: row["warning"] for row in json.loads(result.stdout) if "warning" in row}
    assert warned.keys() == {"blank.png", "mask.png", "few16.png"}
    assert warned["blank.png"].startswith("has 1 grey level,") and warned["mask.png"].startswith("has 2 grey levels,")
    assert result.stderr.count("kdmri: warning: ") == 3 and f"{scans / 'blank.png'} has 1 grey level" in result.stderr
    for number in range(12):
        Image.new("L", (60, 50), number).save(scans / f"blank{number}.png")
    told = run("predict", scans, "-m", model).stderr.splitlines()
    assert len(told) == 11 and told[-1] == "kdmri: warning: 5 more files like that"


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


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_name_that_is_no_utf_8_does_not_stop_it(model, scans) -> None:
    shutil.copy(scans / "a.png", os.fsencode(scans) + b"/\xff.png")
    for form in ("csv", "table", "json"):
        result = run("predict", scans, "-m", model, "--format", form)
        assert result.exit_code == 0, result.output
        assert (b"/\xff.png" if form != "json" else b"\\udcff.png") in result.stdout_bytes


def test_dicom_and_arrays_are_predicted_and_evaluated(model, tmp_path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(dicom_bytes(slice_pixels(2, high=4000).astype(np.uint16)))
    (folder / "IM0001").write_bytes(dicom_bytes(slice_pixels(2, high=4000).astype(np.uint16)))
    np.save(folder / "c.npy", slice_pixels(2, high=4000))
    result = run("predict", folder, "-m", model, "--format", "json")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert len(answers) == 3
    for answer in answers[1:]:
        assert answer["scores"] == pytest.approx(answers[0]["scores"], abs=2e-6)
    labels = write_labels(tmp_path / "labels.csv", "file,label", "a.dcm,glioma", "c.npy,glioma")
    result = run("evaluate", model, "--images", folder, "--labels", labels, "--format", "json")
    assert result.exit_code == 0 and json.loads(result.stdout)["n"] == 2


def test_no_progress_bar_but_on_a_terminal(model, scans) -> None:
    result = run("predict", scans, "-m", model)
    assert result.exit_code == 0 and result.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_files_take_no_more_memory_than_a_thousand(model, scans, tmp_path) -> None:
    many = tmp_path / "many"
    for number in range(10_000):
        folder = many / str(number // 500)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(scans / "a.png", folder / f"{number}.png")
    (many / "3" / "broken.png").write_bytes(b"nothing")
    command = [sys.executable, "-m", "hf_kdmri.cli", "predict", str(many), "-m", str(model), "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        memory = {}
        for line, _ in enumerate(process.stdout):
            if line in (1_000, 9_000):
                found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                assert found is not None
                memory[line] = int(found[1])
        told = process.stderr.read()
    assert process.returncode == 1 and line == 10_000
    assert told.startswith("kdmri: 1 of 10,001 files could not be classified") and "3/broken.png" in told
    print("KiB after 1,000 and 9,000 files:", memory)
    assert memory[9_000] - memory[1_000] < 30_000, memory


def test_calibrated_probabilities_are_asked_for_and_need_a_temperature(model, scans, tmp_path) -> None:
    refused = run("predict", scans, "--model", model, "--calibrated")
    assert refused.exit_code == 2 and "has no calibration_temperature" in refused.stderr
    calibrated = tmp_path / "calibrated"
    shutil.copytree(model, calibrated)
    save_temperature(calibrated, 4.0)
    shown = {}
    for name, options in (("plain", []), ("calibrated", ["--calibrated"])):
        result = run("predict", scans, "--model", calibrated, "--format", "json", *options)
        assert result.exit_code == 0, result.output
        shown[name] = [row["score"] for row in json.loads(result.stdout)]
    assert all(sure > unsure > 1 / 3 for sure, unsure in zip(shown["plain"], shown["calibrated"], strict=True))
