"""`python -m dataset_script.convert`: a folder that loads without us, equals the builder, and is never half written."""

from __future__ import annotations

import fnmatch
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from dataset_script import convert, parquet_files, upload
from dataset_script.dataset_card import describe_column
from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from dataset_script.parquet_layout import find_places, hub_config_name, plan_shards, split_glob
from hf_kdmri.data import assign_splits, find_slices, published_patients, read_slice, read_slices
from hf_kdmri.data.phantom import write_phantom_archives
from hf_kdmri.data.splits import CONFIGS, FOLDS, SPLITS
from tests.conftest import ROOT
from tests.data_fixtures import good_mat
from tests.hub import Fault, refuse, serve_hub
from tests.hub.client import use_hub
from tests.hub.store import Entry
from tests.test_documents import links

# Loads every configuration, as a table and as a stream, in a process that cannot import this repository.
LOADER = """
import pickle, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_kdmri", "dataset_script"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import datasets
datasets.disable_progress_bars()
folder, cache, out = sys.argv[1:]
loaded, stored = {}, datasets.Image(decode=False)
for config in datasets.get_dataset_config_names(folder):
    splits = datasets.load_dataset(folder, config, cache_dir=cache)
    loaded[config] = {name: split.cast_column("image", stored).cast_column("mask", stored).to_list()
                      for name, split in splits.items()}
    streams = datasets.load_dataset(folder, config, streaming=True)
    for name, stream in streams.items():
        assert [row["slice"] for row in stream.select_columns("slice")] == splits[name]["slice"], (config, name)
default = datasets.load_dataset(folder, cache_dir=cache)
first = next(iter(datasets.load_dataset(folder, split="test", streaming=True)))
pictures = {name: (row["image"].mode, row["image"].tobytes(), row["mask"].mode) for name, row in
            (("table", default["test"][0]), ("stream", first))}
pickle.dump((loaded, dict(default["train"].features), pictures), open(out, "wb"))
"""


def run(data_dir: Path, out: Path, *options: str) -> None:
    convert.main(["--data_dir", str(data_dir), "--out", str(out), "--cache_dir", str(out.parent / "cache"), *options])


def load_elsewhere(folder: Path, tmp_path: Path) -> tuple[dict, dict, dict]:
    command = [sys.executable, "-I", "-c", LOADER, str(folder), str(tmp_path / "loaded"), str(tmp_path / "rows.pkl")]
    done = subprocess.run(command, check=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""  # datasets has no complaint about the card
    return pickle.loads((tmp_path / "rows.pkl").read_bytes())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_loads(folder: Path) -> None:
    """No configuration and no folder of shards; and whatever is there under a shard's name opens whole."""
    for config in (None, "patient_groups"):
        with pytest.raises((ValueError, FileNotFoundError)):
            datasets.load_dataset(str(folder), config)
    for path in folder.rglob("*.parquet"):
        assert pq.ParquetFile(path).read().num_rows > 0


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_archives(tmp_path_factory.mktemp("phantoms"), slices=24, patients=20, size=32)


@pytest.fixture(scope="module")
def converted(phantoms, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    run(phantoms, out)
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """One small slice of every fifth published PID, and of all scans of some repeatedly scanned patients."""
    folder = tmp_path_factory.mktemp("published")
    pids = sorted(published_patients())
    for number, pid in enumerate(
        [*pids[::5], *(pid for pid in pids if pid.endswith(("B", "C")) and pid not in pids[::5])]
    ):
        patient = published_patients()[pid]
        (folder / f"{number + 1}.mat").write_bytes(good_mat(patient.label, pid))
    return folder


@pytest.mark.slow
def test_every_configuration_equals_the_builder_without_our_code(published, tmp_path):
    run(published, tmp_path / "out", "--configs", *CONFIGS)
    loaded, features, pictures = load_elsewhere(tmp_path / "out", tmp_path)
    assert set(loaded) == {hub_config_name(config, fold) for config in CONFIGS for fold in range(FOLDS)}
    stored = datasets.Image(decode=False)
    for config in CONFIGS:
        for fold in range(FOLDS):
            builder = FigshareBrainTumor(
                config_name=config, fold=fold, data_dir=str(published), cache_dir=str(tmp_path / "cache")
            )
            builder.download_and_prepare()
            for name, split in builder.as_dataset().items():
                rows = split.cast_column("image", stored).cast_column("mask", stored).to_list()
                ours = sorted(loaded[hub_config_name(config, fold)][name], key=lambda row: row["slice"])
                assert ours == rows, (config, fold, name)
    assert features == dict(builder.info.features)
    assert pictures["table"] == pictures["stream"] and pictures["table"][::2] == ("L", "L")


def test_phantoms_load_without_our_code_and_equal_the_builder(phantoms, converted, tmp_path):
    loaded, _, _ = load_elsewhere(converted, tmp_path)
    assert set(loaded) == {hub_config_name("patient_groups", fold) for fold in range(FOLDS)}
    builder = FigshareBrainTumor(fold=2, data_dir=str(phantoms), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    stored = datasets.Image(decode=False)
    for name, split in builder.as_dataset().items():
        rows = split.cast_column("image", stored).cast_column("mask", stored).to_list()
        assert sorted(loaded["patient_groups_fold2"][name], key=lambda row: row["slice"]) == rows


def test_sixteen_bits(phantoms, tmp_path):
    run(phantoms, tmp_path / "out", "--image_bits", "16")
    splits = datasets.load_dataset(str(tmp_path / "out"), "patient_groups", cache_dir=str(tmp_path / "loaded"))
    raw = {entry.number: read_slice(data, entry.name).image for entry, data in read_slices(find_slices(phantoms))}
    for row in splits["test"]:
        assert row["image"].mode.startswith("I")
        np.testing.assert_array_equal(np.asarray(row["image"], np.int64) + row["raw_offset"], raw[row["slice"]])
    assert "16-bit" in (tmp_path / "out" / "README.md").read_text()


def test_globs_match_the_splits_of_the_whole_table():
    """All published patients: every split of every fold is exactly the shards that its glob matches."""
    patients = list(published_patients().values())
    pids = [patient.pid for patient in patients for _ in range(patient.slices)]
    labels = [patient.label for patient in patients for _ in range(patient.slices)]
    numbers = list(range(1, len(pids) + 1))
    shards = plan_shards(find_places(pids, labels, numbers, CONFIGS))
    assert len(shards) == len({shard.name for shard in shards}) and max(len(shard.rows) for shard in shards) <= 500
    assert sum(len(shard.rows) for shard in shards) == 2 * len(pids)  # random_slices has a copy of its own
    for config in CONFIGS:
        for fold in range(FOLDS):
            assigned = assign_splits(pids, labels, numbers, config, fold)
            for split in SPLITS:
                glob = split_glob(config, fold, split)
                rows = [
                    row for shard in shards if fnmatch.fnmatchcase(f"data/{shard.name}", glob) for row in shard.rows
                ]
                assert sorted(rows) == [row for row, name in enumerate(assigned) if name == split]


def test_shards_have_page_index_row_groups_and_checksums(phantoms, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROWS_PER_GROUP", 2)
    run(phantoms, tmp_path / "out")
    for path in (tmp_path / "out" / "data").iterdir():
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        assert [group.num_rows for group in groups[:-1]] == [2] * (len(groups) - 1) and groups[-1].num_rows <= 2
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        assert all(column.has_offset_index and column.has_column_index for column in columns)
        assert {column.compression for column in columns if "bytes" in column.path_in_schema} == {"UNCOMPRESSED"}
    for folder in (converted, tmp_path / "out"):
        lines = [line.split("  ") for line in (folder / "checksums.sha256").read_text().splitlines()]
        assert {name: digest for digest, name in lines} == {
            f"data/{path.name}": parquet_files.sha256_of(path) for path in (folder / "data").iterdir()
        }
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "checksums.sha256"], check=True, cwd=converted)


def test_two_processes_write_the_same_bytes(phantoms, converted, tmp_path):
    run(phantoms, tmp_path / "out", "--num_proc", "2")
    assert files_of(tmp_path / "out") == files_of(converted)


# before the n-th rename: of the first state, the first shard, a later shard's record, the checksums, the card, data/
@pytest.mark.parametrize("moment", [1, 2, 13, -3, -2, -1])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(phantoms, converted, tmp_path, moment):
    shards = len(list((converted / "data").iterdir()))
    renames = 1 + 2 * shards + 4  # state, each shard and its record, state, checksums, card, data/
    script = (
        "import os, signal, sys\n"
        "from dataset_script import convert\n"
        "replace, left = os.replace, [int(sys.argv.pop(1))]\n"
        "def until_killed(*paths):\n"
        "    if '/out/' in str(paths[1]): left[0] -= 1\n"
        "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(*paths)\n"
        "os.replace = until_killed\n"
        "convert.main()\n"
    )
    before = moment if moment > 0 else renames + 1 + moment
    options = ["--data_dir", str(phantoms), "--out", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    killed = subprocess.run([sys.executable, "-c", script, str(before), *options], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert killed.returncode == -9
    assert_nothing_loads(tmp_path / "out")
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert len(finished) == {1: 0, 2: 0, 13: 6}.get(moment, shards)
    run(phantoms, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(converted)
    kept = [name for name, time in finished.items() if (tmp_path / "out/data" / name).stat().st_mtime_ns == time]
    assert len(kept) == {1: 0, 2: 0, 13: 5}.get(moment, shards)  # the sixth was there, but not recorded as whole


@pytest.mark.parametrize("damage", ["cut short", "one byte", "gone"])
def test_a_damaged_shard_is_written_again(phantoms, converted, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(converted, out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    path = sorted((out / "data").iterdir())[3]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(data if damage == "one byte" else data[:-9])
    run(phantoms, out)
    assert files_of(out) == files_of(converted)
    changed = [path.name for path in (out / "data").iterdir() if path.stat().st_mtime_ns != times[path.name]]
    assert changed == [path.name]


def test_a_failure_leaves_nothing_that_loads(phantoms, tmp_path, monkeypatch, capsys):
    calls = iter(range(100))

    def full(*_):
        if next(calls) == 12:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet_files.os, "fsync", full)
    with pytest.raises(SystemExit, match=r"No space left on device: the disk is full; free some space and run"):
        run(phantoms, tmp_path / "out")
    assert_nothing_loads(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_bad_slice_is_named(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    (tmp_path / "data" / "99.mat").write_bytes(b"no HDF5")
    with pytest.raises(SystemExit, match=r"99\.mat: .*HDF5"):
        run(tmp_path / "data", tmp_path / "out")
    assert_nothing_loads(tmp_path / "out")


def test_other_options_and_other_files_are_refused(phantoms, converted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(converted, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"other options \(image_bits was 8, is 16.*--overwrite"):
        run(phantoms, out, "--image_bits", "16")
    assert files_of(converted).items() <= files_of(out).items()  # untouched
    run(phantoms, out, "--configs", "random_slices", "--overwrite")
    assert {path.name.split("-")[0] for path in (out / "data").iterdir()} == {"random_slices"}
    assert (out / "notes.txt").read_text() == "mine"
    (out / "data" / "cvind-ettvt-00000.parquet").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"cvind-ettvt-00000.parquet, which would be loaded, too"):
        run(phantoms, out, "--configs", "random_slices", "--overwrite")


def test_a_folder_of_other_files_is_refused(phantoms, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("my page")
    with pytest.raises(SystemExit, match=r"holds README.md but no .convert-state.json.*--overwrite"):
        run(phantoms, out)
    with pytest.raises(SystemExit, match=r"README.md was not written by a conversion; move it away"):
        run(phantoms, out, "--overwrite")
    assert (out / "README.md").read_text() == "my page"
    (out / "README.md").rename(out / "page.md")
    run(phantoms, out, "--overwrite")
    assert (out / "page.md").read_text() == "my page"
    with pytest.raises(SystemExit, match="is a file; give a folder"):
        run(phantoms, out / "page.md")


def test_two_conversions_at_once_are_refused(phantoms, converted):
    with parquet_files.ConversionFolder(converted).locked(), pytest.raises(SystemExit, match="another conversion"):
        run(phantoms, converted)


def test_cvind_is_left_out_or_refused(phantoms, tmp_path, capsys):
    run(phantoms, tmp_path / "out")
    said = capsys.readouterr().out
    assert "without the configuration cvind: config 'cvind' needs the published patients" in said
    assert f"load_dataset('{tmp_path / 'out'}', 'patient_groups')" in said
    assert "There is no `cvind`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SystemExit, match="needs the published patients"):
        run(phantoms, tmp_path / "other", "--configs", "patient_groups", "cvind")


def test_card(published, converted, tmp_path):
    phantom_card = (converted / "README.md").read_text()
    assert "Generated phantoms, not patients" in phantom_card and "license:" not in phantom_card
    run(published, tmp_path / "out", "--note", "Images were\nre-encoded.")
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "cc-by-4.0" and head["task_categories"] == ["image-classification", "image-segmentation"]
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == ["patient_groups"]
    number = len(list(published.iterdir()))
    for info in head["dataset_info"]:
        assert sum(split["num_examples"] for split in info["splits"]) == number
    for words in (
        "**Note.** Images were re-encoded.",
        "94.1 %",
        "68.9 %",
        "Not for clinical use",
        "@article{cheng2015",
    ):
        assert words in text
    assert set(links(tmp_path / "out" / "README.md")) == {"https://doi.org/10.6084/m9.figshare.1512427"}
    tests = [line.split("|") for line in text.splitlines() if line.startswith("| `cvind") and "| test |" in line]
    assert len(tests) == FOLDS and sum(int(cells[6]) for cells in tests) == number
    for secret in (str(tmp_path), str(published), str(Path.home())):
        assert secret not in text
    state = files_of(tmp_path / "out")
    run(published, tmp_path / "out", "--note", "")  # the card alone is written anew
    changed = {name for name, data in files_of(tmp_path / "out").items() if state[name] != data}
    assert changed == {"README.md"}


@pytest.mark.parametrize("bits", [8, 16])
def test_every_column_is_described(phantoms, tmp_path, bits):
    features = FigshareBrainTumor(data_dir=str(phantoms), image_bits=bits, cache_dir=str(tmp_path)).info.features
    assert [name for name in features if not describe_column(name, bits)] == []


def test_a_missing_shard_is_noticed_when_loading(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "out")
    next((tmp_path / "out" / "data").glob("patient_groups-t*")).unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(tmp_path / "out"), "patient_groups", cache_dir=str(tmp_path / "loaded"))


def test_dry_run_lists_and_sends_nothing(phantoms, converted, tmp_path, capsys, monkeypatch):
    with serve_hub() as hub:
        use_hub(monkeypatch, hub, token=None)
        shutil.copytree(converted, tmp_path / "out")
        run(phantoms, tmp_path / "out", "--push_to_hub", "jane/tumours", "--dry_run")
        said = capsys.readouterr().out
        assert "README.md" in said and "checksums.sha256" in said and ".convert" not in said
        assert f"Dry run: {len(list((converted / 'data').iterdir())) + 2} files" in said
        assert 'load_dataset("jane/tumours", "patient_groups")' in (tmp_path / "out" / "README.md").read_text()
        with pytest.raises(SystemExit, match=r"not logged in; run `hf auth login`"):
            run(phantoms, tmp_path / "out", "--push_to_hub", "jane/tumours")
        with pytest.raises(SystemExit, match="is no repository name; expected user/name"):
            run(phantoms, tmp_path / "out", "--push_to_hub", "tumours")
        assert hub.requests == []


def test_a_conversion_is_pushed_in_one_commit_and_again_without_one(phantoms, converted, tmp_path, capsys, monkeypatch):
    shutil.copytree(converted, out := tmp_path / "out")
    with serve_hub() as hub:
        use_hub(monkeypatch, hub)
        repository = hub.create("dataset", "jane/tumours")
        stale = {name: Entry(b"x", lfs=False) for name in ("data/cvind-ettvt-00000.parquet", "data/notes.txt")}
        repository.commit("earlier", {**repository.head.files, **stale})
        run(phantoms, out, "--push_to_hub", "jane/tumours", "--tag", "v1.0")
        assert f"Uploaded: {hub.url}/datasets/jane/tumours/commit/{repository.head.oid}" in capsys.readouterr().out
        hidden = (".convert-state.json", ".convert.lock")
        sent = {name: data for name, data in files_of(out).items() if name not in hidden}
        assert repository.files == {**sent, "data/notes.txt": b"x"}
        assert repository.titles == ["Upload the Parquet conversion", "earlier", "initial commit"]
        assert repository.tags == {"v1.0": repository.head.oid}
        uploads = len(hub.uploads)
        upload.main([str(out), "--to", "jane/tumours", "--tag", "v1.0"])
        assert f"All {len(sent)} files are there already" in capsys.readouterr().out
        assert len(repository.commits) == 3 and len(hub.uploads) == uploads


def test_an_upload_that_breaks_off_goes_on(converted, tmp_path, monkeypatch):
    shutil.copytree(converted, out := tmp_path / "out")
    with serve_hub() as hub:
        use_hub(monkeypatch, hub)
        hub.faults.append(Fault("PUT /storage/", refuse(403), skip=8, times=999))
        with pytest.raises(SystemExit, match=r"(?s)HTTP 403\).*uploaded, not in a commit yet: data/"):
            upload.main([str(out), "--to", "jane/tumours"])
        assert hub.dataset("jane/tumours").files == {}
        hub.faults.clear()
        upload.main([str(out), "--to", "jane/tumours"])
        assert len(hub.uploads) == len(set(hub.uploads)) == len(list((out / "data").iterdir()))


def test_what_is_not_a_whole_conversion_is_not_uploaded(converted, tmp_path):
    with pytest.raises(SystemExit, match="holds no conversion"):
        upload.main([str(tmp_path), "--to", "jane/tumours", "--dry_run"])
    shutil.copytree(converted, out := tmp_path / "out")
    shard = next((out / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=f"{shard.name} missing or damaged"):
        upload.main([str(out), "--to", "jane/tumours", "--dry_run"])
