"""`FigshareBrainTumor`: from archives in any packaging, or a download, to the same columns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_script import figshare_brain_tumor
from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from hf_kdmri.data import (
    PLANES,
    DataFolderError,
    SliceFileError,
    find_slices,
    mask_bounding_box,
    patient_group_of,
    published_patients,
    read_slice,
    read_slices,
    slice_plane,
)
from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.phantom import mat_bytes
from hf_kdmri.data.pixels import window_to_uint8
from tests.data_fixtures import SIZE, asymmetric_image, good_mat, members_of, with_field, write_zip


def build(data_dir, cache_dir, num_proc: int | None = None, **options) -> datasets.DatasetDict:
    builder = FigshareBrainTumor(
        data_dir=None if data_dir is None else str(data_dir), cache_dir=str(cache_dir), **options
    )
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset()


def rows(splits: datasets.DatasetDict) -> dict[str, list[dict]]:
    """All rows in order, with images as their stored bytes."""
    plain = {
        name: split.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
        for name, split in splits.items()
    }
    return {name: split.to_list() for name, split in plain.items()}


@pytest.fixture(scope="module")
def prepared(phantom_dir, tmp_path_factory):
    return build(phantom_dir, tmp_path_factory.mktemp("cache"))


def patients(folder: Path, count: int = 12, **replaced: bytes) -> Path:
    """A folder of loose slices, one per patient; some replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        data = replaced.get(f"n{number}", good_mat(number % 3, f"8{number:04d}"))
        (folder / f"{number}.mat").write_bytes(data)
    return folder


def test_columns_hold_what_the_files_hold(phantom_dir, prepared):
    files = {entry.number: read_slice(data, entry.name) for entry, data in read_slices(find_slices(phantom_dir))}
    seen = []
    for split in prepared.values():
        assert split.features["label"].names == list(LABEL_NAMES)
        for row in split:
            item = files[row["slice"]]
            seen.append(row["slice"])
            window, low, high = window_to_uint8(item.image)
            assert row["image"].mode == row["mask"].mode == "L"
            np.testing.assert_array_equal(np.asarray(row["image"]), window)
            np.testing.assert_array_equal(np.asarray(row["mask"]), item.mask * np.uint8(255))
            assert (row["label"], row["pid"]) == (item.label, item.pid)
            assert row["patient_group"] == patient_group_of(item.pid)
            assert (row["height"], row["width"]) == item.image.shape
            assert PLANES[row["plane"]] == slice_plane(item.image)
            assert row["bounding_box"] == mask_bounding_box(item.mask)
            numbers = [row["raw_min"], row["raw_max"], row["window_low"], row["window_high"]]
            np.testing.assert_allclose(numbers, [item.raw_min, item.raw_max, low, high], rtol=1e-6)
            np.testing.assert_allclose(row["tumor_border"], item.border.ravel(), rtol=1e-6)
    assert sorted(seen) == sorted(files)


def test_splits_share_no_patient_group(prepared):
    groups = {name: set(split["patient_group"]) for name, split in prepared.items()}
    assert set(groups) == {"train", "validation", "test"}
    assert len(set().union(*groups.values())) == sum(map(len, groups.values()))
    assert all(split["slice"] == sorted(split["slice"]) for split in prepared.values())


def test_image_is_not_transposed(tmp_path):
    image = np.zeros((30, 50), np.int16)  # also not square
    image[:5, 40:] = 1000  # top right
    border = np.array([[2.0, 20.0], [10.0, 20.0], [10.0, 28.0], [2.0, 28.0]])  # bottom left
    for number in range(1, 13):
        (tmp_path / f"{number}.mat").write_bytes(mat_bytes(number % 3, f"8{number:04d}", image, border))
    row = build(tmp_path, tmp_path / "cache")["train"][0]
    pixels, mask = np.asarray(row["image"]), np.asarray(row["mask"])
    assert row["image"].size == (50, 30) and pixels.shape == mask.shape == (30, 50)
    assert pixels[:5, 40:].min() == 255 and pixels.sum() == 255 * 50
    canvas = Image.new("L", (50, 30))
    points = np.array(row["tumor_border"]).reshape(-1, 2)
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points], fill=255, outline=255)
    np.testing.assert_array_equal(mask, np.asarray(canvas))
    assert row["bounding_box"] == [2, 20, 9, 9] and (row["height"], row["width"]) == (30, 50)


@pytest.mark.parametrize("smallest", [-3000, 0, 40_000])
def test_16_bits_keep_every_intensity(tmp_path, smallest):
    image = asymmetric_image().astype(np.int32) + smallest
    folder = patients(tmp_path / "data", n7=good_mat(1, "80007", image))
    splits = build(folder, tmp_path / "cache", image_bits=16)
    for split in splits.values():
        for row in split:
            assert row["image"].mode == "I;16"
            expected = image if row["slice"] == 7 else asymmetric_image()
            np.testing.assert_array_equal(np.asarray(row["image"]).astype(int) + row["raw_offset"], expected)
    eight = build(folder, tmp_path / "cache")
    assert "raw_offset" not in eight["train"].column_names and eight["train"][0]["image"].mode == "L"


def test_what_16_bits_cannot_hold_is_refused(tmp_path):
    wide = asymmetric_image().astype(np.int32) * 1000
    for data, message in [
        (good_mat(1, "80007", asymmetric_image() / np.float32(2)), "fractions"),
        (good_mat(1, "80007", wide), "do not fit 16 bits"),
    ]:
        folder = patients(tmp_path / message, n7=data)
        with pytest.raises(SliceFileError, match=rf"7\.mat: .*{message}.*image_bits=8"):
            build(folder, tmp_path / "cache", image_bits=16)
        build(folder, tmp_path / "cache")


def test_two_processes_give_the_same(phantom_dir, prepared, tmp_path):
    assert rows(build(phantom_dir, tmp_path, num_proc=2)) == rows(prepared)


@pytest.mark.parametrize("layout", ["zip of zips", "kaggle", "loose"])
def test_every_packaging_gives_the_same(phantom_dir, prepared, tmp_path, layout):
    folder = tmp_path / "data"
    folder.mkdir()
    if layout == "zip of zips":
        inner = {path.name: path.read_bytes() for path in phantom_dir.glob("*.zip")}
        write_zip(folder / "1512427.zip", {**inner, "cvind.mat": b"x"}, zipfile.ZIP_STORED)
    elif layout == "kaggle":
        members = {f"dataset/data/{name}": data for name, data in members_of(phantom_dir).items()}
        write_zip(folder / "archive.zip", {**members, "dataset/cvind.mat": b"x"})
    else:
        for name, data in members_of(phantom_dir).items():
            (folder / f"deep{int(name[:-4]) % 2}").mkdir(exist_ok=True)
            (folder / f"deep{int(name[:-4]) % 2}" / name).write_bytes(data)
    assert rows(build(folder, tmp_path / "cache")) == rows(prepared)


def test_folds_and_configs_do_not_share_a_cache(phantom_dir, tmp_path):
    options = [{}, {"fold": 1}, {"config_name": "random_slices"}, {"config_name": "random_slices", "seed": 1}]
    options += [{"window_percentiles": (1.0, 99.0)}, {"image_bits": 16}]
    folders = [FigshareBrainTumor(data_dir=str(phantom_dir), cache_dir=str(tmp_path), **o).cache_dir for o in options]
    assert len(set(folders)) == len(options)
    same = [{"fold": 0}, {"config_name": "patient_groups"}, {"seed": 3}, {"window_percentiles": (0.1, 99.9)}]
    for option in same:  # what changes nothing shares
        builder = FigshareBrainTumor(data_dir=f"{phantom_dir}/.", cache_dir=str(tmp_path), **option)
        assert builder.cache_dir == folders[0]


def test_changed_files_are_read_again(tmp_path):
    folder = patients(tmp_path / "data")
    first = build(folder, tmp_path / "cache")
    assert rows(build(folder, tmp_path / "cache")) == rows(first)
    brighter = good_mat(1 % 3, "80001", asymmetric_image() + np.int16(7))
    (folder / "1.mat").write_bytes(brighter)  # same name and patient
    os.utime(folder / "1.mat", ns=(1, time.time_ns()))
    second = [row for split in rows(build(folder, tmp_path / "cache")).values() for row in split if row["slice"] == 1]
    assert second[0]["raw_min"] == 7


def test_random_slices_says_once_that_it_leaks(phantom_dir, tmp_path, caplog):
    figshare_brain_tumor._warn_of_leak.cache_clear()
    logger = datasets.utils.logging.get_logger("dataset_script")
    logger.addHandler(caplog.handler)
    try:
        for fold in (0, 1):
            splits = build(phantom_dir, tmp_path, config_name="random_slices", fold=fold)
    finally:
        logger.removeHandler(caplog.handler)
    said = [r.getMessage() for r in caplog.records if "leaks" in r.getMessage()]
    assert len(set(said)) == 1 and "94 %" in said[0] and "70 %" in said[0]
    assert set(splits["test"]["patient_group"]) & set(splits["train"]["patient_group"])  # it does
    assert not set(splits["validation"]["patient_group"]) & set(splits["train"]["patient_group"])


def test_cvind_needs_published_patients(phantom_dir, tmp_path):
    with pytest.raises(ValueError, match=r"needs the published patients.*use config 'patient_groups'"):
        build(phantom_dir, tmp_path, config_name="cvind")


@pytest.mark.parametrize("fold", [-1, 5, "1", 0.5])
def test_fold_is_refused_at_construction(phantom_dir, tmp_path, fold):
    with pytest.raises(ValueError, match="choose one of 0, 1, 2, 3, 4"):
        FigshareBrainTumor(fold=fold, data_dir=str(phantom_dir), cache_dir=str(tmp_path))


@pytest.mark.parametrize("window", [(5, 5), (0, 101), (1,), (99, 1), 5, ("a", "b")])
def test_window_is_refused_at_construction(phantom_dir, tmp_path, window):
    with pytest.raises(ValueError, match="give two numbers"):
        FigshareBrainTumor(window_percentiles=window, data_dir=str(phantom_dir), cache_dir=str(tmp_path))


def test_bits_are_refused_at_construction(phantom_dir, tmp_path):
    for bits in (12, "16"):
        with pytest.raises(ValueError, match=rf"image_bits is {bits!r}; give 8 .* or 16"):
            FigshareBrainTumor(image_bits=bits, data_dir=str(phantom_dir), cache_dir=str(tmp_path))


def test_unknown_options_and_seeds_are_refused(phantom_dir, tmp_path):
    with pytest.raises(TypeError, match=r"no option 'folds'; did you mean fold\?"):
        FigshareBrainTumor(folds=3, data_dir=str(phantom_dir), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="seed is 'x'; give a whole number"):
        FigshareBrainTumor(config_name="random_slices", seed="x", data_dir=str(phantom_dir), cache_dir=str(tmp_path))


def test_empty_folder(tmp_path):
    with pytest.raises(DataFolderError, match=r"published zips.*make demo"):
        FigshareBrainTumor(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (good_mat(0, "80009", np.full((SIZE, SIZE), np.nan, np.float32)), "NaN"),
        (with_field("tumorMask", np.zeros((3, 3), np.uint8)), "tumorMask is"),
        (with_field("label", [[7.0]]), "label is 7"),
        (b"no HDF5", "not a readable HDF5"),
    ],
)
def test_a_bad_slice_is_named_by_the_error(tmp_path, data, message, num_proc):
    folder = patients(tmp_path / "data", n9=data)
    with pytest.raises(SliceFileError, match=rf"9\.mat: .*{message}"):
        build(folder, tmp_path / "cache", num_proc=num_proc)
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing half-written stays
    (folder / "9.mat").write_bytes(good_mat(0, "80009"))
    assert sum(map(len, build(folder, tmp_path / "cache").values())) == 12


def test_package_needs_no_torch():
    script = (
        "import sys\n"
        "for name in ('torch', 'timm', 'transformers'): sys.modules[name] = None\n"
        "import hf_kdmri.data.archives, hf_kdmri.data.mat_file, hf_kdmri.data.splits, hf_kdmri.data.phantom\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.real_data
def test_real_slices(figshare_dir, tmp_path, caplog):
    """A tenth of the real slices, written in the published layout, keep the places of the committed table."""
    script = figshare_dir / "build_figshare_archives.py"
    if not script.exists():
        pytest.skip(f"{script} is missing")
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data"), "--limit", "40"], check=True, stdout=subprocess.DEVNULL
    )
    logger = datasets.utils.logging.get_logger("dataset_script")
    logger.addHandler(caplog.handler)
    try:
        splits = build(tmp_path / "data", tmp_path / "cache", num_proc=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert "2904 of the 3064 published slices are not there (" in caplog.text
    assert sum(map(len, splits.values())) == 160
    for name, split in splits.items():
        for pid, label in zip(split["pid"], split["label"], strict=True):
            patient = published_patients()[pid]
            assert patient.label == label
            assert (patient.part in (0, 1)) == (name == "test") and (patient.part == 2) == (name == "validation")
    transposed = []
    for row in splits["test"]:
        canvas = Image.new("1", row["image"].size)
        points = np.array(row["tumor_border"]).reshape(-1, 2)
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in points], fill=1, outline=1)
        drawn, mask = np.asarray(canvas), np.asarray(row["mask"]) > 0
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95
        transposed.append((drawn & mask.T).sum() / (drawn | mask.T).sum())
        x, y, width, height = row["bounding_box"]
        box = [points[:, 0].min(), points[:, 1].min(), np.ptp(points[:, 0]) + 1, np.ptp(points[:, 1]) + 1]
        np.testing.assert_allclose([x, y, width, height], box, atol=1.5)
    assert np.mean(transposed) < 0.3
    shutil.rmtree(tmp_path / "cache")
