"""A data set reads its own files: not others of the machine, whatever its rows or its README name."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.own.loading import load_own_data
from hf_kdmri.data.own.places import check_data_files
from hf_kdmri.data.own.stream import open_own_stream
from hf_kdmri.data.pictures import PictureError
from tests.test_streams import png

CLASSES = ["a", "b"]
COUNT = 20  # rows


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A picture that is nobody's business."""
    path = tmp_path / "private" / "secret.png"
    path.parent.mkdir()
    path.write_bytes(png(99))
    return path


def table(folder: Path, named: str) -> Path:
    """A CSV of paths, the last one as given."""
    (folder / "pictures").mkdir(parents=True)
    rows = ["image,label"]
    for number in range(COUNT):
        (folder / "pictures" / f"{number}.png").write_bytes(png(number))
        rows.append(f"{named if number == COUNT - 1 else f'pictures/{number}.png'},{CLASSES[number % 2]}")
    (folder / "table.csv").write_text("\n".join(rows))
    # Files of two kinds in one folder: the README says which hold the rows.
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: table.csv\n---\n")
    return folder


def parquet(folder: Path, split: str, named: str | None, first: int = 0) -> Path:
    """A split of pictures, and, if asked for, one cell that names a file in place of holding one."""
    rows = [{"image": {"bytes": png(first + n), "path": None}, "label": n % 2} for n in range(COUNT)]
    if named is not None:
        rows[-1]["image"] = {"bytes": None, "path": named}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    folder.mkdir(parents=True, exist_ok=True)
    # As strangers write it: `Dataset.to_parquet` would put the picture in.
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("way", ["up", "absolute", "round"])
def test_a_row_that_leads_out_of_the_folder_is_refused_by_name(tmp_path: Path, outside: Path, way: str) -> None:
    named = {"up": "../private/secret.png", "absolute": str(outside), "round": "pictures/../../private/secret.png"}[way]
    folder = table(tmp_path / "set", named)
    with pytest.raises(PictureError, match=r"1 of 20 images .* train row 19 \(.*secret\.png\) lies outside .* copy"):
        load_own_data(str(folder), cache_dir=tmp_path / "cache")


def test_a_link_in_the_folder_is_followed(tmp_path: Path, outside: Path) -> None:
    folder = table(tmp_path / "set", "pictures/link.png")
    os.symlink(outside, folder / "pictures" / "link.png")
    own = load_own_data(str(folder), cache_dir=tmp_path / "cache")
    assert sum(map(len, own.splits.values())) == COUNT


def test_a_cell_without_bytes_is_no_way_out(tmp_path: Path, outside: Path) -> None:
    folder = parquet(tmp_path / "set", "train", str(outside))
    with pytest.raises(PictureError, match=r"train row 19 \(.*secret\.png\) lies outside"):
        load_own_data(str(folder), cache_dir=tmp_path / "cache")
    inside = tmp_path / "set" / "own.png"
    inside.write_bytes(png(5))
    assert load_own_data(str(parquet(folder, "train", str(inside))), cache_dir=tmp_path / "cache").splits["train"]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/secret.png", "file:///etc/passwd", "hf://datasets/a/b@c/d.png"]
)
def test_a_cell_with_an_address_is_not_fetched(tmp_path: Path, address: str) -> None:
    folder = parquet(tmp_path / "set", "train", address)
    with pytest.raises(PictureError, match="lies outside"):
        load_own_data(str(folder), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_stream_does_not_leave_its_folder(tmp_path: Path, outside: Path, split: str) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate(("train", "validation", "test")):
        parquet(folder, name, str(outside) if name == split else None, first=100 * number)
    with pytest.raises((PictureError, datasets.exceptions.DatasetGenerationError)) as refused:
        own = open_own_stream(str(folder), cache_dir=tmp_path / "cache")
        assert own.stream is not None
        list(own.stream)
    reason = refused.value.__cause__ if split == "validation" else refused.value
    assert "secret.png) lies outside" in str(reason)


def test_class_folders_are_streamed(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        for number in range(count):
            path = tmp_path / "set" / split / CLASSES[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))
    own = open_own_stream(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert own.stream is not None
    assert sorted(row["image"]["bytes"] for row in own.stream) == sorted(png(number) for number in range(8))


@pytest.mark.parametrize("pattern", ["../private/*.parquet", "{private}/*.parquet"])
def test_a_readme_that_names_files_elsewhere_is_refused(tmp_path: Path, pattern: str) -> None:
    private = parquet(tmp_path / "private", "train", None)
    folder = tmp_path / "set"
    folder.mkdir()
    named = pattern.format(private=private)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named!r}\n---\n")
    for read in (load_own_data, open_own_stream):
        with pytest.raises(OwnDataError, match=r"README names data files outside .*train\.parquet; copy them"):
            read(str(folder), cache_dir=tmp_path / "cache")


def test_a_set_of_the_hub_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "private", "train", None)
    builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(OwnDataError, match="outside its repository"):
        check_data_files(builder, None)
