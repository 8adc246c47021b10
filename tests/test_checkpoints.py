"""Checkpoints: whole or absent, the last whole one is used, never the only one deleted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from hf_kdmri.training.reliability.checkpoints import (
    CONTENTS,
    CheckpointError,
    checkpoints_in,
    damage_of,
    last_whole_checkpoint,
)
from tests.tiny import tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def trained(folder: Path, **options):
    trainer = tiny_trainer(folder, **{"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, **options})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    trained(folder)
    return folder


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "run"))


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_contents_list_every_file_and_nothing_unfinished_is_left(folder: Path):
    names = [path.name for path in checkpoints_in(folder)]
    assert names == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    for checkpoint in checkpoints_in(folder):
        listed = json.loads((checkpoint / CONTENTS).read_text())["files"]
        assert listed.keys() == {path.name for path in checkpoint.iterdir()} - {CONTENTS}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= listed.keys()
        assert damage_of(checkpoint) is None
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("model.safetensors", truncate, "bytes, "),
        ("optimizer.pt", truncate, "optimizer.pt has "),
        ("optimizer.pt", flip_a_bit, "sha256"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
        (CONTENTS, Path.unlink, f"it has no {CONTENTS}"),
        (CONTENTS, truncate, "it cannot be read"),
    ],
)
def test_a_damaged_one_is_told_and_the_one_before_is_used(folder: Path, name: str, harm, told: str):
    harm(folder / "checkpoint-8" / name)
    messages: list[str] = []
    assert last_whole_checkpoint(folder, messages.append) == folder / "checkpoint-6"
    (message,) = messages
    assert "checkpoint-8 is not whole" in message and told in message
    assert (folder / "damaged-checkpoint-8").is_dir() and not (folder / "checkpoint-8").exists()


def test_without_a_whole_one_training_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = trained(tmp_path, save_total_limit=1)
    (only,) = checkpoints_in(tmp_path)
    truncate(only / "optimizer.pt")
    again = tiny_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-8 is not whole" in capsys.readouterr().out
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert not list(tmp_path.glob("damaged-*"))  # put aside until there was another whole one


def test_a_run_that_goes_on_from_the_one_before_ends_alike(folder: Path, checkpoints: Path):
    truncate(folder / "checkpoint-8" / "model.safetensors")
    again = tiny_trainer(folder, save_strategy="steps", save_steps=2, save_total_limit=None)
    again.train(resume_from_checkpoint=True)
    name = "checkpoint-8/model.safetensors"
    assert (folder / name).read_bytes() == (checkpoints / name).read_bytes()


def test_a_write_that_fails_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a disk that is full half-way through the second checkpoint."""
    save, calls = torch.save, []

    def full(value, path, *args, **kwargs):
        calls.append(path)
        save(value, path, *args, **kwargs)
        if len(calls) == 5:
            truncate(Path(path))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 could not be written into .*No space left.*MiB free"
    ) as error:
        trained(tmp_path, save_total_limit=1)
    assert "Kept: checkpoint-2" in str(error.value) and "the same command" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize(("limit", "kept"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8])])
def test_the_limit_deletes_older_ones(tmp_path: Path, limit: int, kept: list[int]):
    trained(tmp_path, save_total_limit=limit)
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{number}" for number in kept]


def test_the_limit_counts_no_damaged_one_as_whole(tmp_path: Path):
    """transformers, told to keep one, kept the one with the highest number."""
    trained(tmp_path, save_total_limit=1)
    os.replace(tmp_path / "checkpoint-8", tmp_path / "checkpoint-9000")
    truncate(tmp_path / "checkpoint-9000" / "model.safetensors")
    trained(tmp_path, save_total_limit=1, max_steps=2)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_the_best_one_keeps_its_name_and_its_place(tmp_path: Path):
    trainer = trained(
        tmp_path,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.5,
        save_strategy="epoch",
        num_train_epochs=3,
    )
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best.parent == tmp_path and damage_of(best) is None
    for checkpoint in checkpoints_in(tmp_path):
        told = json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
        assert Path(told).parent == tmp_path


def test_a_run_resumed_at_its_last_step_trains_no_further(tmp_path: Path):
    first = trained(tmp_path, max_steps=3)
    again = tiny_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
