"""Which columns and labels of a set are understood, and which are refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.own.loading import load_own_data
from tests.own.sets import CLASSES, NUMBER, TEXT, load, save_folders, save_parquet


@pytest.mark.parametrize(
    ("feature", "values", "names"),
    [
        (NUMBER, [10, 2] * 20, ["2", "10"]),
        (TEXT, ["b", "a"] * 20, ["a", "b"]),
        (datasets.Value("bool"), [True, False] * 20, ["False", "True"]),
        (datasets.ClassLabel(names=["z", "a"]), [0, 1] * 20, ["z", "a"]),
    ],
)
def test_labels_of_any_plain_type(tmp_path: Path, feature, values: list, names: list[str]):
    data = load(save_parquet(tmp_path / "set", {"train": {"kind": values}}, kind=feature), label_column="kind")
    assert data.splits["train"].features["label"].names == names
    shown = {names[label] for split in data.splits.values() for label in split["label"]}
    assert shown == set(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "labl"}, r"columns image, label, who, score; did you mean --label_column label\?"),
        ({"image_column": "picture"}, r"did you mean --image_column image\?"),
        ({"group_column": "wo"}, r"did you mean --group_column who\?"),
        ({"group_column": "label"}, "both name the column 'label'"),
        ({"group_column": "who"}, "empty in 1 of 40 rows of train, the first is row 3"),
        ({"group_column": "score"}, "holds float64; expected text or whole numbers"),
        ({"label_column": "score"}, "holds float64; expected one class per image"),
        ({"image_column": "score"}, "holds float64; expected datasets.Image"),
        ({"image_column": "who"}, "holds text, and its first value 'p0' is no file"),
        ({"fold": 7}, "fold is 7"),
    ],
)
def test_refusals_name_the_way_out(tmp_path: Path, options: dict, message: str):
    who = [f"p{n // 2}" if n != 3 else "" for n in range(40)]
    train: dict[str, list] = {"label": [n % 4 for n in range(40)], "who": who, "score": [0.5] * 40}
    label = datasets.ClassLabel(names=CLASSES)
    root = save_parquet(tmp_path / "set", {"train": train}, label=label, who=TEXT, score=datasets.Value("float64"))
    with pytest.raises(ValueError, match=message):
        load(root, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 10 + [-1] * 2, "2 of 12 images of split train have no label, the first of them in row 10"),
        ([0] * 12, "all images have the class '0'; two classes at least"),
        ([-1] * 12, "no split has labels"),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, labels: list[int], message: str):
    with pytest.raises(OwnDataError, match=message):
        load(save_parquet(tmp_path / "set", {"train": {"label": labels}}, label=NUMBER))


def test_a_class_without_training_images_is_named(tmp_path: Path):
    columns = {"train": {"label": ["x", "y"] * 8}, "validation": {"label": ["x"]}, "test": {"label": ["y", "rare"]}}
    with pytest.raises(OwnDataError, match=r"training split has no image of 'rare' \(1 in validation and test\)"):
        load(save_parquet(tmp_path / "set", columns, label=TEXT))


def test_scarce_and_absent_classes_are_noted(tmp_path: Path):
    columns = {
        "train": {"label": ["x"] * 8 + ["few"] * 2},
        "validation": {"label": ["x"]},
        "test": {"label": ["x"]},
    }
    notes = " ".join(load(save_parquet(tmp_path / "set", columns, label=TEXT)).notes)
    assert "fewer than 5 training images: 'few'" in notes and "no test image of 'few'" in notes


def test_a_table_of_paths_is_read(tmp_path: Path):
    root = save_folders(tmp_path / "set" / "pictures")
    paths = sorted(root.rglob("*.png"))
    rows = "".join(f"{path.relative_to(root.parent)},{path.parent.name}\n" for path in paths)
    (root.parent / "table").mkdir()
    types = datasets.Features({"file": TEXT, "label": TEXT})
    columns = dict(zip(types, zip(*(row.split(",") for row in rows.splitlines()), strict=True), strict=True))
    datasets.Dataset.from_dict(columns, features=types).to_parquet(str(root.parent / "table" / "train.parquet"))
    for path in paths:
        target = root.parent / "table" / path.relative_to(root.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    # Files of two kinds in one folder: a README's YAML says which hold the rows.
    head = "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
    (root.parent / "table" / "README.md").write_text(head)
    data = load(root.parent / "table", image_column="file")
    assert sum(map(len, data.splits.values())) == 40 and data.splits["train"][0]["image"].size == (24, 20)


def test_class_folders_with_a_table_need_the_label_in_it(tmp_path: Path):
    root = save_folders(tmp_path / "set")
    paths = sorted(root.rglob("*.png"))
    rows = [f"{path.relative_to(root)},{path.parent.name},p{n // 2}" for n, path in enumerate(paths)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label,patient", *rows]))
    data = load(root, group_column="patient")
    people = {name: set(split["patient_group"]) for name, split in data.splits.items()}
    assert not people["train"] & people["test"] and sum(map(len, data.splits.values())) == 40
    assert data.one_class_per_group and data.splits["test"].features["label"].names == ["a", "b", "c", "d"]
    rows = [",".join(np.array(row.split(","))[[0, 2]]) for row in rows]
    (root / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    with pytest.raises(OwnDataError, match=r"lose theirs: add a column label to that file"):
        load(root, group_column="patient")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OwnDataError, match=r"cannot load the data set 'no/such' \(there is no folder of that name"):
        load_own_data("no/such", cache_dir="cache")
    with pytest.raises(OwnDataError, match="is a reader of the datasets library, not a set"):
        load_own_data("imagefolder", cache_dir="cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OwnDataError, match="doesn't contain any data files"):
        load_own_data("empty", cache_dir="cache")


def test_a_folder_called_like_a_reader_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_folders(tmp_path / "imagefolder")
    save_folders(tmp_path / "other", names=("e", "f"))
    monkeypatch.chdir(tmp_path)
    data = load_own_data("imagefolder", cache_dir="cache")
    assert data.splits["train"].features["label"].names == ["a", "b", "c", "d"] and data.hub_id is None
