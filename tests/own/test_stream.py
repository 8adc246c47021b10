"""A set whose training split is streamed: what is opened, what is refused, and the whole job on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
import yaml

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.own.stream import open_own_stream
from tests.conftest import LABELS, ROOT
from tests.test_streams import png
from tests.test_train_kd import train_kd

SIZES = {"train": 48, "validation": 12, "test": 12}


def save(folder: Path, features: datasets.Features, splits: dict[str, int], shards: int = 4) -> Path:
    """A folder of Parquet files; training in several."""
    (folder / "data").mkdir(parents=True)
    for offset, (split, count) in enumerate(splits.items()):
        scans = [{"bytes": png(1000 * offset + number), "path": None} for number in range(count)]
        kinds = range(3) if isinstance(features["kind"], datasets.ClassLabel) else LABELS
        rows = [{"scan": scan, "kind": kinds[number % 3]} for number, scan in enumerate(scans)]
        whole = datasets.Dataset.from_list(rows, features=features)
        parts = shards if split == "train" else 1
        for part in range(parts):
            path = folder / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet"
            whole.shard(parts, part).to_parquet(path)
    return folder


def features(mode: str | None = "L", label: object = None) -> datasets.Features:
    return datasets.Features({"scan": datasets.Image(mode=mode), "kind": label or datasets.ClassLabel(names=LABELS)})


def opened(folder: Path, cache: Path):
    return open_own_stream(str(folder), image_column="scan", label_column="kind", cache_dir=cache)


def test_validation_and_test_are_kept_and_training_is_not(tmp_path: Path) -> None:
    own = opened(save(tmp_path / "set", features(), SIZES), tmp_path / "cache")
    assert {split: len(rows) for split, rows in own.splits.items()} == {"validation": 12, "test": 12}
    assert own.stream is not None and own.stream.num_shards == 4 and own.grey
    assert own.splits["test"].features["label"].names == LABELS
    row = next(iter(own.stream))
    assert row["image"]["bytes"] == png(0) and row["label"] == 0
    numbers = [number for rows in own.splits.values() for number in rows["slice"]]
    assert numbers == list(range(24))
    assert any("neither counted nor compared" in note for note in own.notes)
    written = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    assert written < 60_000  # 24 pictures of some 1.2 kB, not 72


def test_a_set_that_has_changed_is_read_again(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", features(), SIZES)
    before = opened(folder, tmp_path / "cache").splits["test"]["image"][0].tobytes()
    path = next((folder / "data").glob("test-*"))
    rows = [{"scan": {"bytes": png(7), "path": None}, "kind": 1}] * 3
    datasets.Dataset.from_list(rows, features=features()).to_parquet(path)
    again = opened(folder, tmp_path / "cache").splits["test"]
    assert len(again) == 3 and again["image"][0].tobytes() != before


def test_pictures_that_may_have_colour_get_three_channels(tmp_path: Path) -> None:
    own = opened(save(tmp_path / "set", features(mode=None), SIZES), tmp_path / "cache")
    assert not own.grey and any("three channels" in note for note in own.notes)


@pytest.mark.parametrize(
    ("splits", "label", "message"),
    [
        ({"train": 12, "test": 6}, None, "has no split validation .* cannot be dealt from a stream"),
        ({"train": 12}, None, "no split validation and no split test"),
        (SIZES, datasets.Value("string"), "classes must be known before the first image"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(tmp_path: Path, splits, label, message) -> None:
    folder = save(tmp_path / "set", features(label=label), splits)
    with pytest.raises(OwnDataError, match=message):
        opened(folder, tmp_path / "cache")


@pytest.mark.slow
def test_the_whole_job_on_a_stream(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", features(), SIZES)
    options = {
        "dataset_name": str(folder),
        "image_column": "scan",
        "label_column": "kind",
        "cache_dir": str(tmp_path / "cache"),
        "teacher_architecture": "test_resnet",
        "teacher_image_size": 64,
        "student_architecture": "test_vit",
        "student_image_size": 32,
        "max_steps": 6,
        "logging_steps": 2,
        "save_steps": 3,
        "eval_steps": 3,
        "per_device_train_batch_size": 8,
        "geometry_grid": 2,
        "baseline": False,
        "saliency": False,
        "stream_buffer": 10,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    streaming = str(ROOT / "configs" / "streaming.yaml")
    done = train_kd("--config", streaming, "tiny.yaml", "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "train streamed from 4 shards" in done.stdout
    assert "step 6/6" in done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run"]["slices"] == {"validation": 12, "test": 12}
    assert metrics["models"]["student"]["n"] == 12
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "streamed" in card
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert sum("eval_accuracy" in row for row in history) == 4
    assert os.path.isfile(tmp_path / "run" / "report.html")
