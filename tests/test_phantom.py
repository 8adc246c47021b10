"""Generated slices: the published layout, deterministic, and as varied as the facts say."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw

from hf_kdmri.data import find_slices, patient_group_of, published_patients, read_slice, read_slices
from hf_kdmri.data.phantom import MARKER, write_phantom_archives
from tests.data_fixtures import members_of


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantom_archives(tmp_path_factory.mktemp("phantoms"), slices=90, patients=24, size=48)


@pytest.fixture(scope="module")
def slices(phantoms):
    return [read_slice(data, entry.name) for entry, data in read_slices(find_slices(phantoms))]


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in members_of(folder).items()}


def test_published_layout(phantoms):
    names = sorted(path.name for path in phantoms.glob("*.zip"))
    assert names == sorted(f"brainTumorDataPublic_{a}-{b}.zip" for a, b in [(1, 22), (23, 45), (46, 67), (68, 90)])
    data = members_of(phantoms)["1.mat"]
    assert data.startswith(b"MATLAB 7.3 MAT-file") and data[124:128] == b"\x00\x02IM" and data[512:516] == b"\x89HDF"
    (phantoms / "one.bin").write_bytes(data)
    with h5py.File(phantoms / "one.bin") as file:
        group = file["cjdata"]
        assert sorted(group) == ["PID", "image", "label", "tumorBorder", "tumorMask"]
        assert group["label"].shape == (1, 1) and group["label"].dtype == np.float64
        assert group["PID"].dtype == np.uint16 and group["PID"].shape[1] == 1
        assert group["image"].dtype == np.int16 and group["image"].shape == (48, 48)
        assert group["tumorMask"].dtype == np.uint8 and set(np.unique(group["tumorMask"])) <= {0, 1}
        assert group["tumorBorder"].dtype == np.float64 and group["tumorBorder"].shape[1] == 1
    with h5py.File(phantoms / "cvind.mat") as file:
        assert file["cvind"].shape == (1, 90) and set(np.unique(file["cvind"])) == {1, 2, 3, 4, 5}
    assert not list(phantoms.glob(".*.tmp"))


def test_patients(slices):
    pids = {item.pid: item.label for item in slices}
    assert not set(pids) & set(published_patients())
    groups = {patient_group_of(pid) for pid in pids}
    assert len(groups) == 24 < len(pids)
    assert {len(pid) for pid in pids} <= {5, 6, 8, 9}
    for pid, label in pids.items():
        assert pid.startswith("MR") <= (label == 1)  # as published: MR only in glioma
    counts = Counter(item.label for item in slices)
    assert [counts[label] / 90 for label in range(3)] == pytest.approx([708 / 3064, 1426 / 3064, 930 / 3064], abs=0.03)


def test_masks_and_borders_agree(slices):
    for item in slices:
        canvas = Image.new("1", item.mask.shape[::-1])
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in item.border], fill=1, outline=1)
        drawn = np.asarray(canvas)
        assert item.mask.any()
        assert (item.mask & drawn).sum() / (item.mask | drawn).sum() > 0.9
        assert item.border.min() >= 0 and item.border.max() <= 47


def test_pixels_vary_as_a_scanner_would(slices):
    maxima = [item.raw_max for item in slices]
    assert min(maxima) > 255 and max(maxima) > 3 * min(maxima)  # needs 16 bits, gain differs from scan to scan
    assert all(item.raw_min >= 0 and item.raw_max < 32767 for item in slices)
    assert len({item.image.tobytes() for item in slices}) == len(slices)


def test_classes_differ_in_the_lesion(slices):
    """Meningioma and pituitary tumours enhance evenly, gliomas in a ring; pituitary tumours are small."""
    inside = {label: [] for label in range(3)}
    for item in slices:
        values = item.image[item.mask] / np.percentile(item.image, 99)
        inside[item.label].append((item.mask.mean(), values.std() / values.mean(), values.mean()))
    area, spread, mean = (
        dict(zip(inside, c, strict=True)) for c in zip(*(np.mean(v, 0) for v in inside.values()), strict=True)
    )
    assert area[2] < area[0] / 2 and area[2] < area[1] / 2
    assert spread[1] > 1.5 * spread[0] and mean[0] > mean[1]


def test_same_seed_same_files_in_another_process(phantoms, tmp_path):
    script = (
        "import sys; from hf_kdmri.data.phantom import write_phantom_archives;"
        "write_phantom_archives(sys.argv[1], slices=90, patients=24, size=48)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])
    assert digests(tmp_path) == digests(phantoms)


def test_other_seed_other_files(tmp_path):
    first = write_phantom_archives(tmp_path / "a", slices=8, patients=4, size=32)
    second = write_phantom_archives(tmp_path / "b", slices=8, patients=4, size=32, seed=1)
    assert not set(digests(first).values()) & set(digests(second).values())


def test_a_second_call_writes_nothing_and_other_arguments_replace(tmp_path):
    options = {"slices": 8, "patients": 4, "size": 32}
    write_phantom_archives(tmp_path, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_phantom_archives(tmp_path, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    write_phantom_archives(tmp_path, slices=9, patients=4, size=32)
    assert len(find_slices(tmp_path)) == 9


def test_a_run_cut_short_is_repeated(tmp_path):
    options = {"slices": 8, "patients": 4, "size": 32}
    write_phantom_archives(tmp_path, **options)
    expected = digests(tmp_path)
    marker = json.loads((tmp_path / MARKER).read_text())
    (tmp_path / MARKER).write_text(json.dumps({**marker, "complete": False}))
    (tmp_path / marker["files"][2]).unlink()
    write_phantom_archives(tmp_path, **options)
    assert digests(tmp_path) == expected


def test_other_data_are_never_overwritten(tmp_path):
    real = tmp_path / "brainTumorDataPublic_1-2.zip"
    with zipfile.ZipFile(real, "w") as archive:
        archive.writestr("1.mat", b"real")
    before = real.read_bytes()
    with pytest.raises(FileExistsError, match="give an empty folder"):
        write_phantom_archives(tmp_path, slices=8, patients=4, size=32)
    assert real.read_bytes() == before


@pytest.mark.parametrize("options", [{"slices": 3, "patients": 4}, {"patients": 2}, {"size": 16}, {"size": 5000}])
def test_impossible_requests(tmp_path, options):
    with pytest.raises(ValueError, match="give "):
        write_phantom_archives(tmp_path, **options)
