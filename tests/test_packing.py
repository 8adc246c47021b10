"""A packed student: one folder that says the same as the run's student, in half the bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.hub.card_rules import check_card
from hf_kdmri.hub.card_text import PLACEHOLDER
from hf_kdmri.hub.packing import PREDICTIONS, PackError, pack_student
from hf_kdmri.inference import ImageClassifier
from tests.hub.run_fixture import make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("made") / "run")
    (run / "student" / "onnx").mkdir()
    (run / "student" / "onnx" / "model_int8.onnx").write_bytes(bytes(500))  # newer than the weights
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_half_precision_halves_the_weights_and_is_loaded_in_float32(run: Path, tmp_path: Path):
    sizes = pack_student(run, tmp_path / "packed", "jane/x", half=True)
    before = load_file(run / "student" / "model.safetensors")
    after = load_file(tmp_path / "packed" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.float16 for name in after if before[name].dtype == torch.float32)
    assert sizes["model.safetensors"] < 0.6 * (run / "student" / "model.safetensors").stat().st_size
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "packed")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_the_folder_is_a_whole_repository(run: Path, tmp_path: Path):
    sizes = pack_student(run, tmp_path / "packed", "jane/x")
    assert {"README.md", "config.json", "handler.py", "results.json", "onnx/model_int8.onnx"} <= sizes.keys()
    assert "onnx/model.onnx" not in sizes
    check_card(tmp_path / "packed")
    assert 'model="jane/x"' in (tmp_path / "packed" / "README.md").read_text()


def test_without_a_name_the_card_speaks_of_a_folder(run: Path, tmp_path: Path):
    pack_student(run, tmp_path / "packed")
    card = (tmp_path / "packed" / "README.md").read_text()
    assert f"local-dir:{PLACEHOLDER}" in card and "without/a-name" not in card and "hf-hub:" not in card
    check_card(tmp_path / "packed")


def test_the_samples_get_the_probabilities_that_are_written_beside_them(run: Path, tmp_path: Path):
    pack_student(run, tmp_path / "packed", "jane/x", half=True)
    written = json.loads((tmp_path / "packed" / PREDICTIONS).read_text())
    assert len(written) == 3
    classifier = ImageClassifier(str(tmp_path / "packed"))
    for name, row in written.items():
        picture = Image.open(tmp_path / "packed" / "samples" / name).convert("RGB")
        assert classifier.probabilities([picture])[0] == pytest.approx(row, abs=1e-3)


def test_packed_again_it_is_the_same(run: Path, tmp_path: Path):
    first = pack_student(run, tmp_path / "packed", "jane/x", half=True)
    assert pack_student(run, tmp_path / "packed", "jane/x", half=True) == first


def test_weights_that_float16_cannot_hold_are_refused_and_nothing_is_written(run: Path, tmp_path: Path):
    path = run / "student" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("running_var") or weights[name].ndim == 1)
    weights[name] = weights[name] + 1e6
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, (0, 0))
    with pytest.raises(PackError, match="float16"):
        pack_student(run, tmp_path / "packed", "jane/x", half=True)
    assert not (tmp_path / "packed").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_sample_pictures_float16_cannot_be_checked_and_is_refused(run: Path, tmp_path: Path, monkeypatch):
    """A model of other classes than phantoms have gets none."""
    monkeypatch.setattr("hf_kdmri.hub.run_files.write_samples", lambda *_: [])
    for picture in (run / "student").glob("samples/*.png"):
        picture.unlink()
    card = run / "student" / "README.md"
    card.write_text(re.sub(r"widget:\n(?:- src: .*\n  example_title: .*\n)+", "", card.read_text()))
    with pytest.raises(PackError, match="no sample pictures"):
        pack_student(run, tmp_path / "packed", half=True)
    pack_student(run, tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / PREDICTIONS).read_text()) == {}


def test_an_int8_file_of_other_weights_is_refused(run: Path, tmp_path: Path):
    os.utime(run / "student" / "onnx" / "model_int8.onnx", (0, 0))
    with pytest.raises(PackError, match="older than the weights"):
        pack_student(run, tmp_path / "packed", "jane/x")


def test_a_folder_with_something_else_is_left_alone(run: Path, tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    done = CliRunner().invoke(app, ["pack", str(run), "--out", str(tmp_path / "notes"), "--name", "jane/x"])
    assert done.exit_code == 1 and "was not packed here" in done.stderr
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"
