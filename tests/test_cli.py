from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from picture_mutations import dicom_bytes
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

from hf_kdmri import StudentForImageClassification
from hf_kdmri.cli import app
from hf_kdmri.cli.label_file import read_label_file
from hf_kdmri.data.pictures import PictureError, find_images
from hf_kdmri.inference import read_image, save_temperature

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
        (["file;label;label", "a.png;glioma;glioma"], "has the column label 2 times"),
        (["file,label", "c, d.jpg,glioma"], "line 2: 3 fields, and the header has 2; put quotes around"),
        (["file,label", ",glioma"], "line 2: the file's name is empty"),
        (["file,label", "a.png, "], "line 2: the label is empty"),
        (["file,label", "a.png,gliom"], "--label-map 'gliom=glioma'"),
        (["file,label", "a.png,glioma", "./a.png,glioma"], "line 3: './a.png' is listed twice (first in line 2)"),
        ([""], "is empty; expected a header"),
        (["file,label", "a.png,1"], "line 2: unknown label '1'; the model knows meningioma, glioma, pituitary"),
        (["file,label", "../labels.csv,glioma"], "'../labels.csv' lies outside --images"),
        (["file,label", "/etc/passwd,glioma"], "'/etc/passwd' lies outside --images"),
        (["file,label", "a.png,glioma", "a.png,glioma"], "line 3: 'a.png' is listed twice"),
        (["file,label,patient", "a.png,glioma,"], "the patient is empty"),
        (
            ["file,label,patient", "a.png,glioma,p", "deep/b.PNG,pituitary,p"],
            "line 3: patient 'p' has two labels, glioma (line 2) and pituitary; if that is so, score without patients",
        ),
    ],
)
def test_bad_label_files_are_refused_by_line(rows, message, model, scans, tmp_path) -> None:
    result = run("evaluate", model, "--images", scans, "--labels", write_labels(tmp_path / "labels.csv", *rows))
    assert result.exit_code == 2
    assert message in result.stderr


def test_evaluate_prints_markdown_with_intervals_over_patients(model, tmp_path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    rows = ["file,label,patient"]
    for number in range(24):
        Image.fromarray(slice_pixels(number).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{LABELS[number % 3]},p{number}")
    arguments = ("evaluate", model, "--images", folder, "--labels", write_labels(tmp_path / "l.csv", *rows), "--format")
    text = run(*arguments, "markdown").stdout
    assert "|  | slices | patients |" in text
    assert "| n | 24 | 24 |" in text
    assert "→ glioma" in text
    assert "24 of 24 files scored; none skipped. Intervals (95%) are over patients, not over slices." in text
    report = json.loads(run(*arguments, "json").stdout)
    for part in (report, report["patients"]):
        low, high = part["accuracy_interval"]
        assert 0 <= low <= part["accuracy"] <= high <= 1
    table = run(*arguments, "table").stdout
    assert f"accuracy {report['accuracy']:.1%} ({report['accuracy_interval'][0]:.1%} to" in table
    for key, value in report.items():
        if isinstance(value, float) and not key.startswith("patient_"):
            assert key.split("_")[-1].lower() in table.lower(), f"{key} is in the report and not in the table"


def test_evaluate_without_patients_has_no_interval_and_says_so(model, scans, tmp_path) -> None:
    labels = write_labels(tmp_path / "labels.csv", "file,label", "a.png,glioma")
    result = run("evaluate", model, "--images", scans, "--labels", labels)
    assert "No patients known" in result.stdout
    assert "%" in result.stdout
    assert " to " not in result.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("delimiter", "lead"), [(",", ""), (";", ""), ("\t", ""), (";", "sep=;\n")])
def test_label_files_of_every_dialect(encoding, delimiter, lead, scans, tmp_path) -> None:
    rows = [
        ["File ", "Label", "Age", "PATIENT"],
        ["a.png", "Glioma", "61", "p1"],
        ["deep\\b.PNG", "PITUITARY", "", "p2"],
    ]
    rows += [["'c, d.jpg'".replace("'", '"'), " meningioma", "", "p3"], ["", "", "", ""]]
    text = lead + "\r\n".join(delimiter.join(row) for row in rows)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    table = read_label_file(tmp_path / "labels.csv", scans, LABELS)
    assert [(row.path.name, row.label, row.patient) for row in table.rows] == [
        ("a.png", 1, "p1"),
        ("b.PNG", 2, "p2"),
        ("c, d.jpg", 0, "p3"),
    ]


def test_label_map_renames_and_skips_and_the_share_is_told(model, scans, tmp_path) -> None:
    labels = write_labels(
        tmp_path / "l.csv", "image,kind", "a.png,Meningioma_Tumor", "deep/b.PNG,notumor", "gone.png,notumor"
    )
    arguments = ["evaluate", model, "--images", scans, "--labels", labels, "--file-column", "image"]
    arguments += ["--label-column", "kind"]
    refused = run(*arguments)
    assert refused.exit_code == 2
    for expected in (
        "line 2: unknown label 'Meningioma_Tumor'",
        "the nearest is meningioma",
        "line 3: unknown label 'notumor' (2 rows)",
    ):
        assert expected in refused.stderr
    arguments += ["--label-map", "notumor=", "--label-map", "meningioma_tumor=Meningioma", "--label-map", "other="]
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n"] == 1
    assert report["files"] == {
        "listed": 3,
        "scored": 1,
        "skipped_labels": {"notumor": 2},
        "missing": 0,
        "unreadable": 0,
        "copies": 0,
    }
    assert "names 'other', which no row has" in result.stderr
    assert "1 of 3 files scored; 66.7% skipped: 2 labelled 'notumor' (label map)" in run(*arguments).stdout


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["notumor"], "is not NAME=CLASS"),
        (["=glioma"], "is not NAME=CLASS"),
        (["x=glioma", "X="], "two meanings: glioma and skip"),
        (["x=gliom"], "turns 'x' into 'gliom', which the model does not know (the nearest is glioma)"),
        (["glioma="], "skips all 1 rows"),
    ],
)
def test_wrong_label_maps_are_refused(entries, message, model, scans, tmp_path) -> None:
    labels = write_labels(tmp_path / "labels.csv", "file,label", "a.png,glioma")
    options = [part for entry in entries for part in ("--label-map", entry)]
    result = run("evaluate", model, "--images", scans, "--labels", labels, *options)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_whole(suffix, model, scans, tmp_path) -> None:
    rows = ["file,label,patient", '"c, d.jpg",glioma,p1', "deep/b.PNG,pituitary,p2"]
    labels, out = write_labels(tmp_path / "labels.csv", *rows), tmp_path / f"predictions.{suffix}"
    result = run("evaluate", model, "--images", scans, "--labels", labels, "--predictions", out)
    assert result.exit_code == 0, result.output
    table = (pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table)(out).to_pylist()
    columns = ["file", "label", "patient", "predicted", "score", *(f"probability_{label}" for label in LABELS)]
    assert list(table[0]) == columns
    assert [row["file"] for row in table] == ["c, d.jpg", "deep/b.PNG"]
    expected = {
        Path(row["file"]).name: row for row in json.loads(run("predict", scans, "-m", model, "--format", "json").stdout)
    }
    for row in table:
        known = expected[Path(row["file"]).name]
        assert row["predicted"] == known["label"]
        assert row["score"] == pytest.approx(known["score"], abs=2e-6)
        assert sum(row[f"probability_{label}"] for label in LABELS) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "message"), [("p.xlsx", "expected .csv or .parquet"), ("no/p.csv", "is no folder")])
def test_predictions_that_cannot_be_written_are_refused_first(name, message, model, scans, tmp_path) -> None:
    labels = write_labels(tmp_path / "labels.csv", "file,label", "a.png,glioma")
    result = run("evaluate", model, "--images", scans, "--labels", labels, "--predictions", tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr


def test_every_kind_of_picture_is_scored(model, tmp_path) -> None:
    folder = tmp_path / "kinds"
    folder.mkdir()
    grey, wide = slice_pixels(0).astype(np.uint8), slice_pixels(0, high=4000)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(grey).convert("RGB").save(folder / "rgb.bmp")
    Image.fromarray(grey).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(grey).convert("LA").save(folder / "la.png")
    Image.fromarray(grey).convert("P").save(folder / "palette.gif")
    Image.fromarray(grey).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(grey).convert("1").save(folder / "one_bit.png")
    Image.fromarray(wide.astype(np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(wide.astype(np.float32)).save(folder / "float.tiff")
    Image.fromarray(grey).resize((7, 300)).save(folder / "thin.webp")
    names = sorted(path.name for path in folder.iterdir())
    labels = write_labels(tmp_path / "labels.csv", "file,label", *(f"{name},glioma" for name in names))
    result = run("evaluate", model, "--images", folder, "--labels", labels, "--format", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == len(names) == 10


def test_copies_under_other_names_are_pointed_out(model, scans, tmp_path) -> None:
    shutil.copy(scans / "a.png", scans / "copy.png")
    labels = write_labels(
        tmp_path / "labels.csv", "file,label", "a.png,glioma", "copy.png,pituitary", "deep/b.PNG,glioma"
    )
    result = run("evaluate", model, "--images", scans, "--labels", labels)
    assert result.exit_code == 0
    assert "copy.png are the same file, byte for byte" in result.stderr
    assert "1 are copies of others and count again" in result.stdout


def test_nothing_readable_is_an_error_not_a_score(model, scans, tmp_path) -> None:
    (scans / "broken.png").write_bytes(b"nothing")
    labels = write_labels(tmp_path / "labels.csv", "file,label", "broken.png,glioma")
    result = run("evaluate", model, "--images", scans, "--labels", labels)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nothing to score: 0 of 1 files scored; 100.0% skipped: 1 unreadable" in result.stderr


def test_export_and_its_failure(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hf_kdmri.export.onnx_file._EXTRA", ("onnx_is_not_here",))
    result = run("export", model, "--to", "onnx", "--out", tmp_path / "s.onnx")
    assert result.exit_code == 1
    assert "pip install 'hf_kdmri[onnx]'" in result.stderr


def test_push_dry_run_lists_the_students_files(model) -> None:
    result = run("push", model.parent, "--to", "jane/kdmri-student", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "config.json" in result.stdout
    assert "bytes in 2 files" in result.stdout
    assert "Dry run: nothing was sent to jane/kdmri-student" in result.stdout
    assert run("push", model.parent, "--to", "nowhere", "--dry-run").exit_code == 2
    assert "config.json and model.safetensors missing" in run("push", model.parent.parent, "--to", "j/x").stderr


def test_all_faults_of_a_label_file_are_told_at_once(model, scans, tmp_path) -> None:
    rows = ["file,label,patient", "a.png,glioma,p", "a.png,glioma,p", "deep/b.PNG,pituitary,p", '"c, d.jpg",gliom,q']
    rows += ["../x.png,glioma,q", "x.png,,q", "y.png,glioma", *(f"a{n}.png,kind{n},q" for n in range(6))]
    result = run("evaluate", model, "--images", scans, "--labels", write_labels(tmp_path / "l.csv", *rows))
    assert result.exit_code == 2
    first, *told = result.stderr.splitlines()
    assert first.endswith("l.csv has 12 faults:")
    expected = [
        "3: 'a.png' is listed twice",
        "4: patient 'p' has two",
        "5: unknown label 'gliom'",
        "6: '../x.png' lies",
    ]
    expected += ["7: the label is empty", "8: 2 fields", *(f"{line}: unknown label 'kind" for line in range(9, 13))]
    assert len(told) == 11 and told[-1] == "  and 2 more"
    for line, beginning in zip(told, expected, strict=False):
        assert line.startswith(f"  line {beginning}")


def test_missing_files_are_listed_like_unreadable_ones(model, scans, tmp_path) -> None:
    (scans / "broken.png").write_bytes(b"nothing")
    rows = ["file,label", "a.png,glioma", "a.pgn,glioma", "deep/q.PNG,glioma", "broken.png,glioma", "z.png,other"]
    labels = write_labels(tmp_path / "labels.csv", *rows)
    arguments = ["evaluate", model, "--images", scans, "--labels", labels, "--label-map", "other="]
    result = run(*arguments)
    assert result.exit_code == 1
    skipped = "1 labelled 'other' (label map), 2 missing, 1 unreadable"
    assert f"1 of 5 files scored; 80.0% skipped: {skipped}" in result.stdout
    assert "3 of 5 files could not be classified" in result.stderr
    assert "a.pgn: is missing (the nearest is a.png)" in result.stderr
    assert "deep/q.PNG: is missing" in result.stderr and "broken.png: cannot be read" in result.stderr
    none = run("evaluate", model, "--images", scans / "deep", "--labels", write_labels(labels, rows[0], rows[1]))
    assert none.exit_code == 1 and none.stdout == ""
    assert "nothing to score: 0 of 1 files scored; 100.0% skipped: 1 missing" in none.stderr


def test_patients_can_be_left_out_and_links_followed(model, scans, tmp_path) -> None:
    (scans / "link.png").symlink_to(tmp_path / "elsewhere.png")
    shutil.copy(scans / "a.png", tmp_path / "elsewhere.png")
    rows = ["file,label,patient", "link.png,glioma,p", f"{scans / 'deep' / 'b.PNG'},pituitary,p"]
    labels = write_labels(tmp_path / "labels.csv", *rows)
    out = tmp_path / "p.csv"
    arguments = ["evaluate", model, "--images", scans, "--labels", labels, "--predictions", out, "--format", "json"]
    assert run(*arguments).exit_code == 2
    result = run(*arguments, "--patient-column", "")
    assert result.exit_code == 0, result.output
    assert "patients" not in json.loads(result.stdout)
    assert pyarrow.csv.read_csv(out).column("file").to_pylist() == ["link.png", "deep/b.PNG"]


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
        memory = {}
        for line, _ in enumerate(process.stdout):
            if line in (1_000, 9_000):
                memory[line] = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])
        told = process.stderr.read()
    assert process.returncode == 1 and line == 10_000
    assert told.startswith("kdmri: 1 of 10001 files could not be classified") and "3/broken.png" in told
    print("KiB after 1,000 and 9,000 files:", memory)
    assert memory[9_000] - memory[1_000] < 30_000, memory


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell) -> None:
    def complete(words: str) -> str:
        environment = {"_KDMRI_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
        return CliRunner().invoke(app, [], prog_name="kdmri", env=environment).stdout

    assert "predict" in complete("kdmri pre") and "evaluate" not in complete("kdmri pre")
    assert "--max-body" in complete("kdmri serve --max")
    script = CliRunner().invoke(app, [], prog_name="kdmri", env={"_KDMRI_COMPLETE": f"source_{shell}"}).stdout
    assert "kdmri" in script and f"complete_{shell}" in script
    assert "--install-completion" in run("--help").stdout and "--show-completion" in run("--help").stdout


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve", "push", "report", "compare"])
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
