"""Who is in which split of a user's own set, as it is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import pytest

from hf_kdmri.data.own.columns import OwnDataError
from tests.own.sets import CLASSES, NUMBER, TEXT, keys, load, save_folders, save_parquet


def test_groups_are_pooled_and_never_divided(tmp_path: Path):
    columns = {
        split: {"label": [n // 4 % 4 for n in range(80)], "who": [start + n // 4 for n in range(80)]}
        for split, start in (("train", 0), ("test", 10))  # persons 10 to 19 stand on both published sides
    }
    root = save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=CLASSES), who=NUMBER)
    tested: list[str] = []
    for fold in range(5):
        data = load(root, group_column="who", fold=fold)
        people = {name: set(split["patient_group"]) for name, split in data.splits.items()}
        assert not people["train"] & people["test"] | people["train"] & people["validation"]
        assert not people["validation"] & people["test"]
        assert sum(map(len, data.splits.values())) == 160
        assert (data.split, data.fold, data.one_class_per_group) == ("by who", fold, False)
        assert not any("group_column" in warning for warning in data.warnings)
        tested += people["test"]
    assert Counter(tested) == Counter(str(n) for n in range(30))  # each person is tested in one fold


def test_own_splits_are_kept_under_any_usual_name(tmp_path: Path):
    columns = {name: {"label": [n % 2 for n in range(size)]} for name, size in (("train", 20), ("val", 6))}
    columns["test"] = {"label": [0, 1]}
    data = load(save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=["x", "y"])))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "validation": 6, "test": 2}
    assert (data.split, data.fold, data.drawn) == ("as published", None, ())
    (warning,) = data.warnings
    assert "no --group_column" in warning
    with pytest.raises(OwnDataError, match="brings its own train, validation and test"):
        load(tmp_path / "set", fold=2)


@pytest.mark.parametrize(("published", "missing"), [("test", "validation"), ("validation", "test")])
def test_a_missing_split_is_drawn_from_training(tmp_path: Path, published: str, missing: str):
    columns = {"train": {"label": ["x", "y"] * 40}, published: {"label": ["x", "y"] * 5}}
    data = load(save_parquet(tmp_path / "set", columns, label=TEXT))
    assert len(data.splits[published]) == 10
    assert len(data.splits[missing]) == {"validation": 10, "test": 16}[missing]
    assert Counter(data.splits[missing]["label"]).keys() == {0, 1}
    assert data.drawn == (missing,) and data.fold == 0
    assert not set(keys(data.splits[missing])) & set(keys(data.splits["train"]))


def test_a_set_of_one_split_is_dealt_by_content_not_by_order(folders: Path, tmp_path: Path):
    data = load(folders)
    assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [28, 4, 8]
    for split in data.splits.values():
        assert len(set(Counter(split["label"]).values())) == 1  # as many of each class
    for number, path in enumerate(sorted(folders.rglob("*.png"), reverse=True)):
        target = tmp_path / "renamed" / path.parent.name / f"{number:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    renamed = load(tmp_path / "renamed")
    assert set(keys(renamed.splits["test"])) == set(keys(data.splits["test"]))
    assert set(keys(load(folders, seed=1).splits["test"])) != set(keys(data.splits["test"]))


def test_every_image_keeps_a_number_of_its_own_in_all_splits_and_folds(folders: Path):
    by_number: dict[int, bytes] = {}
    for options in (dict(), dict(seed=5), dict(fold=3)):
        splits = load(folders, **options).splits
        seen = [number for split in splits.values() for number in split["slice"]]
        assert sorted(seen) == list(range(40))
        for split in splits.values():
            for number, key in zip(split["slice"], keys(split), strict=True):
                assert by_number.setdefault(number, key) == key


def test_equal_files_stay_together_and_published_twins_are_told(tmp_path: Path):
    root = save_folders(tmp_path / "one")
    for path in list(root.rglob("*.png")):
        path.with_name(f"copy_of_{path.name}").write_bytes(path.read_bytes())
    data = load(root)
    assert not set(keys(data.splits["train"])) & set(keys(data.splits["test"]))
    both = tmp_path / "both"
    for split in ("train", "validation", "test"):
        save_folders(both / split, per_class=2)
    assert any("8 of 8 test images are, byte for byte, in the training split" in w for w in load(both).warnings)


def test_unlabelled_and_foreign_splits_are_left_out_aloud(tmp_path: Path):
    columns = {name: {"label": [0, 1] * 20} for name in ("train", "validation")}
    columns |= {"test": {"label": [-1] * 4}}
    data = load(save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=["x", "y", "z"])))
    assert "split test has no labels and is not used" in data.notes
    assert "no image has the class 'z'; left out" in data.notes
    assert data.drawn == ("test",)
    assert data.splits["train"].features["label"].names == ["x", "y"]
