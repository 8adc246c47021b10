"""Labels and PIDs: the same in one process and two, read once per source, read anew when the source changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_script import slice_index
from dataset_script.slice_index import labels_and_pids
from hf_kdmri.data.archives import find_slices
from hf_kdmri.data.mat_file import SliceFileError
from tests.data_fixtures import good_mat, write_zip


def archive(folder: Path, pids: list[str]) -> Path:
    write_zip(folder / "slices.zip", {f"{n}.mat": good_mat(n % 3, pid) for n, pid in enumerate(pids, 1)})
    return folder


def test_two_processes_give_the_order_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_index, "_PER_TASK", 2)
    entries = find_slices(archive(tmp_path, [f"10{n}" for n in range(7)]))
    alone = labels_and_pids(entries, cache_dir=tmp_path / "a")
    shared = labels_and_pids(entries, cache_dir=tmp_path / "b", num_proc=2)
    assert alone == shared == ([1, 2, 0, 1, 2, 0, 1], [f"10{n}" for n in range(7)])


def test_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = find_slices(archive(tmp_path, ["100", "101", "102"]))
    first = labels_and_pids(entries, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(slice_index, "read_slices", lambda entries: pytest.fail("read again"))
    assert labels_and_pids(entries, cache_dir=tmp_path / "cache") == first


def test_a_changed_source_is_read_anew(tmp_path: Path) -> None:
    labels_and_pids(find_slices(archive(tmp_path, ["100", "101"])), cache_dir=tmp_path / "cache")
    _, pids = labels_and_pids(find_slices(archive(tmp_path, ["100", "1022"])), cache_dir=tmp_path / "cache")
    assert pids == ["100", "1022"]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_bad_file_is_named_and_nothing_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_proc: int
) -> None:
    monkeypatch.setattr(slice_index, "_PER_TASK", 1)
    write_zip(tmp_path / "slices.zip", {"1.mat": good_mat(), "2.mat": b"not HDF5"})
    with pytest.raises(SliceFileError, match=r"slices.zip/2.mat: not a readable HDF5"):
        labels_and_pids(find_slices(tmp_path), cache_dir=tmp_path / "cache", num_proc=num_proc)
    assert not list(tmp_path.glob("cache/*"))
