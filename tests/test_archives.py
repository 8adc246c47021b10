"""Slices are found and read in every packaging, and unsafe or broken archives are refused."""

from __future__ import annotations

import io
import pickle
import random
import stat
import struct
import time
import zipfile
from collections import Counter

import pytest
from mutations import mutated_zip

from hf_kdmri.data import archives
from hf_kdmri.data.archives import (
    DataFolderError,
    SliceEntry,
    SliceReader,
    find_slices,
    find_slices_in_zips,
    read_slices,
)
from hf_kdmri.data.mat_file import SliceFileError, read_slice
from tests.data_fixtures import good_mat, write_zip

MATS = {f"{number}.mat": f"slice {number}".encode() * 50 for number in (1, 2, 10, 11)}


def as_zip(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def halves() -> dict[str, bytes]:
    names = list(MATS)
    return {
        f"brainTumorDataPublic_{part}.zip": as_zip({name: MATS[name] for name in names[part::2]}) for part in range(2)
    }


def lay_out(folder, layout: str) -> None:
    if layout == "zips":
        for name, data in halves().items():
            (folder / name).write_bytes(data)
    elif layout == "all in one":
        write_zip(folder / "1512427.zip", {**halves(), "README.txt": b"x", "cvind.mat": b"x"}, zipfile.ZIP_STORED)
    elif layout == "all in one, packed":
        write_zip(folder / "1512427.zip", {f"deep/{name}": data for name, data in halves().items()})
    elif layout == "kaggle":
        members = {f"dataSet/part/{name}": data for name, data in MATS.items()}
        write_zip(folder / "archive.zip", {**members, "dataSet/cvind.mat": b"x", "__MACOSX/dataSet/._1.mat": b"x"})
    elif layout == "loose":
        (folder / "a" / "b").mkdir(parents=True)
        for name, data in MATS.items():
            (folder / ("a" if name < "2" else "a/b") / name).write_bytes(data)
    (folder / "cvind.mat").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")


@pytest.mark.parametrize("layout", ["zips", "all in one", "all in one, packed", "kaggle", "loose"])
def test_every_layout_gives_the_same_slices(tmp_path, layout):
    lay_out(tmp_path, layout)
    before = sorted(tmp_path.rglob("*"))
    entries = pickle.loads(pickle.dumps(find_slices(tmp_path)))
    assert [entry.number for entry in entries] == [1, 2, 10, 11]
    assert {f"{entry.number}.mat": data for entry, data in read_slices(entries)} == MATS
    with SliceReader() as reader:  # one by one, in any order
        for entry in reversed(entries):
            assert reader.read(entry) == MATS[f"{entry.number}.mat"]
    assert sorted(tmp_path.rglob("*")) == before  # nothing extracted


def test_one_zip_is_a_data_dir_too(tmp_path):
    lay_out(tmp_path, "kaggle")
    assert len(find_slices(tmp_path / "archive.zip")) == 4


@pytest.mark.parametrize("content", [None, "notes.txt", "empty.zip"])
def test_nothing_to_read_names_the_ways_on(tmp_path, content):
    if content == "empty.zip":
        write_zip(tmp_path / content, {"README.txt": b"x"})
    elif content:
        (tmp_path / content).write_text("x")
    with pytest.raises(DataFolderError, match=r"published zips.*make demo") as refusal:
        find_slices(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_missing_folder(tmp_path):
    with pytest.raises(DataFolderError, match=r"no such folder.*make demo"):
        find_slices(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 10, 200, -5, -30])
def test_zip_cut_short(tmp_path, keep):
    data = as_zip(MATS)
    (tmp_path / "brainTumorDataPublic_1-766.zip").write_bytes(data[:keep])
    with pytest.raises(DataFolderError, match=r"brainTumorDataPublic_1-766\.zip.*download it again"):
        find_slices(tmp_path)


def test_inner_zip_cut_short(tmp_path):
    write_zip(tmp_path / "all.zip", {"inner.zip": as_zip(MATS)[:-30]})
    with pytest.raises(DataFolderError, match=r"all\.zip/inner\.zip.*download it again"):
        find_slices(tmp_path)


def test_damaged_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", MATS, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    entries = find_slices(tmp_path)
    with pytest.raises(DataFolderError, match=r"a\.zip/1\.mat.*damaged.*download"):
        list(read_slices(entries))


@pytest.mark.parametrize(
    "name", ["../1.mat", "a/../../1.mat", "/etc/1.mat", "C:/1.mat", "C:1.mat", "..\\1.mat", "\\\\host\\share\\1.mat"]
)
@pytest.mark.parametrize("inner", [False, True])
def test_paths_that_leave_the_folder(tmp_path, name, inner):
    evil = {"2.mat": b"x", name: b"x"}
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_zip(tmp_path / "a" / "b" / "evil.zip", {"inner.zip": as_zip(evil)} if inner else evil)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataFolderError, match=r"evil\.zip.*: holds .*refused"):
        find_slices(tmp_path / "a" / "b")
    assert sorted(tmp_path.rglob("*")) == before


def test_symbolic_link_in_an_archive_is_not_followed(tmp_path):
    secret = tmp_path / "secret.mat"
    secret.write_bytes(good_mat())
    info = zipfile.ZipInfo("1.mat")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, str(secret))
    [(_, content)] = read_slices(find_slices(tmp_path / "a.zip"))
    assert content == str(secret).encode()  # text, which the next reader refuses


def test_zip_bombs(tmp_path, monkeypatch):
    write_zip(tmp_path / "bomb.zip", {"1.mat": bytes(8 * 2**20)})
    with pytest.raises(DataFolderError, match=r"bomb\.zip/1\.mat: 8388608 bytes from"):
        find_slices(tmp_path)
    monkeypatch.setattr(archives, "MAX_MAT_BYTES", 100)
    write_zip(tmp_path / "bomb.zip", {"1.mat": bytes(range(200))}, zipfile.ZIP_STORED)
    with pytest.raises(DataFolderError, match="more than a slice archive can need"):
        find_slices(tmp_path)


def repeated(data: bytes, times: int) -> bytes:
    """The archive with its one member listed again and again."""
    start, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    records = data[start:end] * times
    return data[:start] + records + data[end : end + 8] + struct.pack("<HHI", times, times, len(records)) + data[-6:]


@pytest.mark.parametrize("member", ["inner.zip", "1.mat"])
def test_members_that_share_their_bytes(tmp_path, member):
    """An overlap bomb: a small file whose members are together large."""
    (tmp_path / "bomb.zip").write_bytes(repeated(as_zip({member: as_zip(MATS)}), 50_000))
    with pytest.raises(DataFolderError, match=r"bomb\.zip: lists 50000 members .* that do not overlap"):
        find_slices(tmp_path)
    with pytest.raises(DataFolderError, match=r"bomb\.zip: lists 50000 members"), SliceReader() as reader:
        reader.read(SliceEntry(1, str(tmp_path / "bomb.zip"), (member,)))


def test_inner_zip_that_grows(tmp_path):
    noise = random.Random(0).randbytes(20_000)
    inner = as_zip({"pad.bin": (noise + bytes(980_000)) * 20}, zipfile.ZIP_STORED)
    write_zip(tmp_path / "bomb.zip", {"inner.zip": inner})
    with pytest.raises(DataFolderError, match=r"bomb\.zip/inner\.zip: 2\d{7} bytes from .* 20 times"):
        find_slices(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path, method):
    write_zip(tmp_path / "a.zip", MATS, method)
    with pytest.raises(DataFolderError, match=rf"a\.zip/1\.mat: is compressed with method {method}, .*with deflate"):
        find_slices(tmp_path)


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    write_zip(tmp_path / "a.zip", MATS)
    with pytest.raises(DataFolderError, match="lists 4 members"):
        find_slices(tmp_path)


def test_size_that_lies(tmp_path):
    path = write_zip(tmp_path / "lie.zip", {"1.mat": bytes(range(256)) * 4})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)  # claims 10 bytes
    path.write_bytes(data)
    with pytest.raises(DataFolderError, match="damaged"):
        list(read_slices(find_slices(tmp_path)))


def test_encrypted_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.mat": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataFolderError, match="encrypted"):
        list(read_slices(find_slices(tmp_path)))


def test_nesting_has_a_limit(tmp_path):
    write_zip(tmp_path / "a.zip", {"b.zip": as_zip({"c.zip": as_zip(MATS)})})
    with pytest.raises(DataFolderError, match=r"a\.zip/b\.zip/c\.zip.*nested"):
        find_slices(tmp_path)


def test_two_files_for_one_slice(tmp_path):
    write_zip(tmp_path / "a.zip", MATS)
    (tmp_path / "10.mat").write_bytes(b"x")
    with pytest.raises(DataFolderError, match=r"two files claim slice 10: .*10\.mat.*keep one") as refusal:
        find_slices(tmp_path)
    assert "a.zip/10.mat" in str(refusal.value)


def test_a_mat_that_is_no_slice_is_not_passed_over(tmp_path):
    write_zip(tmp_path / "a.zip", {**MATS, "results.mat": b"x"})
    with pytest.raises(SliceFileError, match=r"a\.zip/results\.mat"):
        find_slices(tmp_path)


def test_file_removed_meanwhile(tmp_path):
    with SliceReader() as reader, pytest.raises(DataFolderError, match="cannot be read"):
        reader.read(SliceEntry(1, str(tmp_path / "1.mat")))


def test_damaged_archives_are_read_or_refused(tmp_path):
    """`benchmarks/fuzz_readers.py` does the same at length, in processes whose memory it watches."""
    verdicts = Counter()
    for number in range(200):
        (tmp_path / "a.zip").write_bytes(mutated_zip(random.Random(f"test {number}")))
        start = time.process_time()
        try:
            for entry, content in read_slices(find_slices(tmp_path)):
                read_slice(content, entry.name)
        except (DataFolderError, SliceFileError) as error:
            verdicts["refused"] += 1
            assert str(tmp_path) in str(error)
        else:
            verdicts["valid"] += 1
        assert time.process_time() - start < 2
    assert verdicts["refused"] > 100 and verdicts["valid"] > 5


def test_zips_of_any_name_are_searched_and_called_by_the_one_that_people_know(tmp_path) -> None:
    stored = tmp_path / "0a1b2c"
    stored.write_bytes(as_zip({"deep/7.mat": b"x", "deep/3.mat": b"y", "read me.txt": b"z"}))
    found = find_slices_in_zips({str(stored): "part 1.zip"})
    assert [data for _, data in read_slices(found)] == [b"y", b"x"], "in order of numbers"
    stored.write_bytes(as_zip({"read me.txt": b"z"}))
    with pytest.raises(DataFolderError, match=r"no slice \(<number>\.mat\) in part 1\.zip"):
        find_slices_in_zips({str(stored): "part 1.zip"})
