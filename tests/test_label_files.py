"""The CSV and the label map of `kdmri evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_kdmri.data.label_file import read_label_file
from tests.cli_cases import run, save_model, write_labels, write_scans
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture
def scans(tmp_path) -> Path:
    return write_scans(tmp_path / "scans")


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


def test_all_faults_of_a_label_file_are_told_at_once(model, scans, tmp_path) -> None:
    rows = ["file,label,patient", "a.png,glioma,p", "a.png,glioma,p", "deep/b.PNG,pituitary,p", '"c, d.jpg",gliom,q']
    rows += ["../x.png,glioma,q", "x.png,,q", "y.png,glioma", *(f"a{n}.png,kind{n},q" for n in range(6))]
    result = run("evaluate", model, "--images", scans, "--labels", write_labels(tmp_path / "l.csv", *rows))
    assert result.exit_code == 2
    begun, first, *told = result.stderr.splitlines()
    assert begun.startswith("kdmri: evaluating ")
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
