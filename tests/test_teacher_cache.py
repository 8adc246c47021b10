"""The teacher cache: equal to asking the teacher, resumed, checked, and refused where it is of something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.training import teacher_cache, teacher_cache_build
from hf_kdmri.training.teacher_cache import TeacherCacheError
from tests.conftest import ROOT
from tests.tiny import tiny_model, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ALL_RELATIONS = dict(logit_weight=1.0, geometry_weight=5.0, sample_weight=2.0, exit_weight=0.5)


def cached_trainer(folder: Path, cache: Path | None = None, **options):
    cache = folder / "cache" if cache is None else cache
    options = {**ALL_RELATIONS, "augmentation": RandomViews(), "geometry_grid": 4, **options}
    return tiny_trainer(folder / "out", teacher_cache=str(cache), **options)


def losses(trainer) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if key.startswith("loss")}
        for row in trainer.state.log_history
        if "loss" in row
    ]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (teacher_cache, teacher_cache_build):
        monkeypatch.setattr(module, "BLOCK", 8)


@pytest.mark.parametrize("shuffled", [False, True])
def test_training_from_the_cache_equals_asking_the_teacher(tmp_path: Path, shuffled: bool):
    shared: dict[str, Any] = dict(
        logging_strategy="steps", logging_steps=1, num_train_epochs=3, shuffle_teacher=shuffled
    )
    asked = tiny_trainer(
        tmp_path / "asked", augmentation=RandomViews(), **{**ALL_RELATIONS, **shared, "geometry_grid": 4}
    )
    asked.train()
    cached = cached_trainer(tmp_path, **shared)
    cached.train()
    assert len(losses(asked)) == 12
    for ours, theirs in zip(losses(cached), losses(asked), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_second_student_does_not_ask_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_trainer(tmp_path).train()
    again = cached_trainer(tmp_path, cache=tmp_path / "cache", sample_weight=0.0)
    monkeypatch.setattr(again.model.teacher, "stage_features", None)
    monkeypatch.setattr(again.model.teacher, "forward", None)
    again.train()
    assert np.isfinite(losses(again)[-1]["loss"])


def test_epochs_take_turns_with_the_views_of_the_cache(tmp_path: Path):
    trainer = cached_trainer(tmp_path, views_per_image=2, num_train_epochs=4, learning_rate=0.0, weight_decay=0.0)
    trainer.train()
    assert trainer.teacher_cache.arrays["logits"].shape == (2 * 32, 3)
    first, second, third, fourth = (row["loss_logit"] for row in losses(trainer))
    assert first == pytest.approx(third, rel=1e-4) and second == pytest.approx(fourth, rel=1e-4)
    assert first != pytest.approx(second, rel=1e-3)


def test_a_build_that_was_cut_off_goes_on_and_ends_alike(tmp_path: Path, small_blocks, monkeypatch: pytest.MonkeyPatch):
    whole = cached_trainer(tmp_path / "whole")
    whole.train()
    asked: list[range] = []
    stop_after = 5
    ask = teacher_cache_build._Asking.answers

    def counted(asking: teacher_cache_build._Asking, rows: range):
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(rows)
        return ask(asking, rows)

    monkeypatch.setattr(teacher_cache_build._Asking, "answers", counted)
    with pytest.raises(KeyboardInterrupt):
        cached_trainer(tmp_path / "cut").train()
    folder = tmp_path / "cut" / "cache"
    with open(folder / "blocks-0.jsonl", "a") as log:
        log.write('{"block": 7, "chec')  # what a kill leaves of a line
    with pytest.raises(TeacherCacheError, match="no finished teacher cache"):
        teacher_cache.open_teacher_cache(folder, {})
    before, stop_after = len(asked), -1
    resumed = cached_trainer(tmp_path / "cut")
    resumed.train()
    assert len(asked) - before == 1 + 8 - (before - 1)  # one batch for the shapes, and the blocks that were missing
    for name, array in whole.teacher_cache.arrays.items():
        np.testing.assert_array_equal(array, resumed.teacher_cache.arrays[name])
    assert sorted(path.name for path in folder.iterdir()) == [
        "embedding.npy", "kernel.npy", "logits.npy", "manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(model=1), "teacher_weights"),
        (dict(seed=7), "views_seed: 42 there, 7 now"),
        (dict(augmentation=RandomViews(rotation=5.0)), "'rotation': 20.0"),
        (dict(geometry_grid=3), "geometry_grid: 4 there, 3 now"),
        (dict(views_per_image=3), "views_per_image: 2 there, 3 now"),
        (dict(num_train_epochs=5), "or train on its views by --views_per_image 2"),
        (dict(teacher_dtype="bfloat16"), "teacher_precision"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_difference(tmp_path: Path, changes: dict, named: str):
    cached_trainer(tmp_path).train()
    if "model" in changes:
        changes = {"model": tiny_model(seed=changes["model"])}
    with pytest.raises(TeacherCacheError, match="holds the teacher cache of something else") as refusal:
        cached_trainer(tmp_path, cache=tmp_path / "cache", **changes).train()
    assert named in str(refusal.value)


def test_other_images_and_other_versions_are_refused(tmp_path: Path):
    cached_trainer(tmp_path).train()
    trainer = cached_trainer(tmp_path, cache=tmp_path / "cache")
    trainer.train_dataset.chunks[1] = trainer.train_dataset.chunks[1].copy()
    trainer.train_dataset.chunks[1][3, 0, 0, 0] ^= 1
    with pytest.raises(TeacherCacheError, match="images_sha256"):
        trainer.train()
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    manifest["facts"]["versions"]["torch"] = "1.0"
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TeacherCacheError, match=r"versions: .*'torch': '1\.0'"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()


def test_damage_is_found_and_named(tmp_path: Path, small_blocks):
    cached_trainer(tmp_path).train()
    damaged = np.load(tmp_path / "cache" / "kernel.npy", mmap_mode="r+")
    damaged[17, 3] += 1
    damaged.flush()
    with pytest.raises(TeacherCacheError, match=r"views 16 to 23 .* are damaged.*delete the folder"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()
    path = tmp_path / "cache" / "kernel.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TeacherCacheError, match=r"kernel\.npy cannot be read"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()


@pytest.mark.parametrize("manifest", [b"", b"{", b"{}", b"\xff\xfe\x00", b"[1]", b'{"facts": {"images": "many"}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, manifest: bytes):
    cached_trainer(tmp_path).train()
    (tmp_path / "cache" / "manifest.json").write_bytes(manifest)
    with pytest.raises(TeacherCacheError, match=r"manifest\.json is damaged; delete the folder"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()


def test_a_manifest_that_lacks_checksums_and_an_empty_array_are_refused(tmp_path: Path, small_blocks):
    cached_trainer(tmp_path).train()
    path = tmp_path / "cache" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "blocks": manifest["blocks"][:-1]}))
    with pytest.raises(TeacherCacheError, match=r"manifest\.json is damaged"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()
    path.write_text(json.dumps(manifest))
    (tmp_path / "cache" / "kernel.npy").write_bytes(b"")
    with pytest.raises(TeacherCacheError, match=r"kernel\.npy cannot be read"):
        cached_trainer(tmp_path, cache=tmp_path / "cache").train()


def test_a_finished_cache_is_read_without_writing_beside_it(tmp_path: Path):
    cached_trainer(tmp_path).train()
    lock = tmp_path / "cache.lock"
    lock.unlink()
    cached_trainer(tmp_path, cache=tmp_path / "cache").train()
    assert not lock.exists()


def test_an_array_that_was_lost_while_building_is_built_again(
    tmp_path: Path, small_blocks, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache_build, "_finish", lambda *arguments: None)
        with pytest.raises(TeacherCacheError, match="no finished teacher cache"):
            cached_trainer(tmp_path).train()
    (tmp_path / "cache" / "kernel.npy").unlink()
    trainer = cached_trainer(tmp_path)
    trainer.train()
    assert all(np.asarray(array).any(1).all() for array in trainer.teacher_cache.arrays.values())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="posix_fallocate is not there")
def test_a_disk_that_fills_meanwhile_is_told_and_leaves_no_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache_build.os, "posix_fallocate", full)
    with pytest.raises(TeacherCacheError, match=r"no room for .*npy .*No space left"):
        cached_trainer(tmp_path).train()
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob(".*.npy"))
    monkeypatch.undo()
    cached_trainer(tmp_path).train()
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in (tmp_path / "cache").glob("*.npy"))


def test_a_file_where_the_folder_should_be_and_a_place_without_rights(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(TeacherCacheError, match="is a file; --teacher_cache is the name of a folder"):
        cached_trainer(tmp_path, cache=tmp_path / "file").train()
    with pytest.raises(TeacherCacheError, match="no teacher cache can be built in"):
        cached_trainer(tmp_path, cache=tmp_path / "file" / "cache").train()


def test_the_same_precision_by_another_name_is_the_same_cache(tmp_path: Path):
    cached_trainer(tmp_path).train()
    cached_trainer(tmp_path, cache=tmp_path / "cache", teacher_dtype="float32").train()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(teacher_cache_build.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(TeacherCacheError, match=r"needs .* MiB, but .* MiB free; fewer --views_per_image"):
        cached_trainer(tmp_path).train()
    assert not any((tmp_path / "cache").iterdir())


def test_what_no_cache_can_serve_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="hint compares the teacher's feature maps"):
        cached_trainer(tmp_path, feature_weight=1.0)
    with pytest.raises(ValueError, match="needs views_per_image"):
        cached_trainer(tmp_path, max_steps=5).train()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(TeacherCacheError, match="not empty and holds no teacher cache"):
        cached_trainer(tmp_path, cache=tmp_path / "other").train()


TWO_PROCESSES = """
import json
import sys
from pathlib import Path
import torch.distributed as dist
from hf_kdmri.training import teacher_cache, teacher_cache_build
from tests.test_teacher_cache import cached_trainer
teacher_cache.BLOCK = teacher_cache_build.BLOCK = 8
answers, asked = teacher_cache_build._Asking.answers, []
def answers_counted(asking, rows):
    asked.append([rows.start, rows.stop])
    return answers(asking, rows)
teacher_cache_build._Asking.answers = answers_counted
cached_trainer(Path(sys.argv[1]), per_device_train_batch_size=4).train()
Path(sys.argv[1], f"asked-{dist.get_rank()}.json").write_text(json.dumps(asked[1:]))  # after the one for the shapes
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.two_process
@pytest.mark.slow
def test_two_processes_build_one_cache(tmp_path: Path, small_blocks):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29523"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"asked-{rank}.json").read_text()) for rank in range(2))
    assert sorted(first + second) == [[row, row + 8] for row in range(0, 64, 8)] and len(first) == len(second) == 4
    alone = cached_trainer(tmp_path / "alone")
    alone.train()
    for name, array in alone.teacher_cache.arrays.items():
        built = torch.from_numpy(np.load(tmp_path / "cache" / f"{name}.npy")).float()
        torch.testing.assert_close(built, torch.from_numpy(array.copy()).float(), atol=2e-3, rtol=2e-3)
