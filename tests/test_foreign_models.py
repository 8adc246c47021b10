"""Strangers' models: nothing is read but their own safetensors, whatever their configuration asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.export.source import SourceModel
from hf_kdmri.inference import ImageClassifier
from tests.conftest import LABELS

DOORS = {
    "predict": lambda folder: ImageClassifier(str(folder)),
    "teacher": TeacherForImageClassification.from_pretrained,
    "export": SourceModel.load,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "names code of its own.*never run"),
        ({"architecture": "hf-hub:someone/else"}, "architecture 'hf-hub:someone/else', which timm .* no other place"),
        ({"architecture": "local-dir:/etc"}, "architecture 'local-dir:/etc'"),
        ({"architecture": ["test_vit"]}, "architecture"),
        ({"model_args": {"checkpoint_path": "ok.pth"}}, "passes checkpoint_path to timm"),
        ({"model_args": {"pretrained": True, "img_size": 32}}, "passes pretrained to timm"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(door, changes, message, folder: Path) -> None:
    change(folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        DOORS[door](folder)


@pytest.mark.parametrize("door", DOORS)
def test_our_own_are_loaded(door, folder: Path) -> None:
    DOORS[door](folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth"])
def test_pickles_are_refused_with_the_way_to_convert(name, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    for model in (folder, folder / name):
        with pytest.raises(ValueError, match=r"pickle.*can run code.*convert them once.*save_file"):
            ImageClassifier(str(model))


def test_an_argument_that_timm_does_not_take_is_one_line(folder: Path) -> None:
    change(folder, model_args={"nonsense": 3})
    with pytest.raises(ValueError, match=r"cannot load a classifier from .*nonsense"):
        ImageClassifier(str(folder))
