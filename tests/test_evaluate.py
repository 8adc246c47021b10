"""`kdmri evaluate`: scores, what is left out, what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from tests.cli_cases import run, save_model, slice_pixels, write_labels, write_scans
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture
def scans(tmp_path) -> Path:
    return write_scans(tmp_path / "scans")


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
    assert "1 is a copy of another and counts again" in result.stdout


def test_nothing_readable_is_an_error_not_a_score(model, scans, tmp_path) -> None:
    (scans / "broken.png").write_bytes(b"nothing")
    labels = write_labels(tmp_path / "labels.csv", "file,label", "broken.png,glioma")
    result = run("evaluate", model, "--images", scans, "--labels", labels)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nothing to score: 0 of 1 file scored; 100.0% skipped: 1 unreadable" in result.stderr


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
    assert "nothing to score: 0 of 1 file scored; 100.0% skipped: 1 missing" in none.stderr


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
