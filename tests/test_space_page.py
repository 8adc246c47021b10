"""The folder that `kdmri space` writes: whole or not at all, and true to its model. No browser is needed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import SpaceCard
from typer.testing import CliRunner

from hf_kdmri import StudentForImageClassification
from hf_kdmri.cli import app
from hf_kdmri.hub import space_page
from hf_kdmri.hub.space_page import model_facts, page_folder, write_space
from hf_kdmri.inference import save_temperature
from tests.conftest import LABELS, ROOT

has_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
CARD = """---
model_name: kdmri: "tiny"
tags: [generated-phantoms]
model-index:
- name: tiny
  results:
  - task: {type: image-classification}
    dataset: {name: Phantoms, type: phantoms, split: test}
    metrics:
    - {type: accuracy, value: 0.875, name: Accuracy over slices}
    - {type: loss, value: 1.5, name: Loss}
---
"""


@pytest.fixture
def student(tmp_path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "student"
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32).save_pretrained(folder)
    save_temperature(folder, 1.5)
    return folder


def test_the_page_knows_its_model(student) -> None:
    facts = model_facts(student)
    assert (facts["name"], facts["labels"], facts["temperature"]) == ("student", LABELS, 1.5)
    assert (facts["results"], facts["card"], facts["warning"]) == ([], None, None)
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]
    (student / "README.md").write_text(CARD.replace('kdmri: "tiny"', "tiny"))
    facts = model_facts(student, card="https://huggingface.co/jane/tiny", threshold=0.7)
    assert facts["results"] == [{"name": "Accuracy over slices", "value": 0.875, "data": "Phantoms, test"}]
    assert "generated phantoms" in facts["warning"]
    assert (facts["threshold"], facts["card"]) == (0.7, "https://huggingface.co/jane/tiny")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"interpolation": "lanczos"}, "lanczos"),
        ({"crop_mode": "border"}, "border"),
        ({"input_size": [3, 32, 48]}, "32, 48"),
    ],
)
def test_preprocessing_that_the_page_does_not_know_is_refused(student, change, reason) -> None:
    path = student / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason):
        model_facts(student)


def test_wrong_usage_is_refused_before_anything_is_written(student, tmp_path) -> None:
    out = tmp_path / "page"
    for arguments, reason in (
        (["--card", "javascript:alert(1)"], "is no address"),
        (["--threshold", "1.5"], "less than or equal to 1"),
    ):
        result = CliRunner().invoke(app, ["space", str(out), "--model", str(student), *arguments])
        assert result.exit_code == 2
        assert reason in result.output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.html").write_text("<h1>Mine</h1>")
    result = CliRunner().invoke(app, ["space", str(tmp_path / "full"), "--model", str(student)])
    assert result.exit_code == 2
    assert "is not this page" in result.output
    assert not out.exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["index.html"]


@has_extra
def test_a_folder_ready_to_be_uploaded(student, tmp_path) -> None:
    out = tmp_path / "new" / "page"
    name, card = 'A: "student" #1', "https://huggingface.co/jane/tiny"
    result = CliRunner().invoke(app, ["space", str(out), "--model", str(student), "--name", name, "--card", card])
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "model.json").read_text())
    model = (out / "model.onnx").read_bytes()
    assert facts["file"] == {
        "name": "model.onnx",
        "bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    head = SpaceCard.load(out / "README.md").data
    assert (head.title, head.sdk, head.app_file, head.models) == (name, "static", "index.html", ["jane/tiny"])
    assert len(head.short_description) <= 60  # the Hub refuses more
    assert [path.name for path in out.parent.iterdir()] == ["page"]

    (out / "mine.txt").write_text("kept")
    write_space(out, student, name="Another")
    assert json.loads((out / "model.json").read_text())["name"] == "Another"
    assert (out / "mine.txt").read_text() == "kept"


@has_extra
def test_a_failed_export_changes_nothing(student, tmp_path, monkeypatch) -> None:
    from hf_kdmri.export import checks

    out = write_space(tmp_path / "page", student)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    for folder in (out, tmp_path / "other"):
        result = CliRunner().invoke(app, ["space", str(folder), "--model", str(student), "--name", "Another"])
        assert result.exit_code == 1
        assert "differ from PyTorch's" in result.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "student"]


def test_the_libraries_are_what_their_notes_say() -> None:
    for name in ("onnxruntime-web", "dicom-parser"):
        folder = page_folder() / name
        sums = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "VERSION.txt").read_text(), re.M))
        sums = {file: digest for digest, file in sums.items()}
        assert set(sums) | {"LICENSE", "VERSION.txt"} == {path.name for path in folder.iterdir()}
        for file, digest in sums.items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file


def test_what_the_page_and_the_command_must_agree_on() -> None:
    page = page_folder()
    worker, facts = (page / "js" / "worker.js").read_text(), (page / "js" / "facts.js").read_text()
    wasm = page / "onnxruntime-web" / "ort-wasm-simd-threaded.wasm"
    assert f"bytes: {wasm.stat().st_size} }}" in worker
    assert f'"{space_page.SCHEMA}"' in facts
    assert space_page._GENERATOR in (page / "index.html").read_text()
    assert not (page / "model.json").exists() or (page / "model.onnx").exists()


def test_the_page_asks_nothing_of_other_servers() -> None:
    own = [
        path
        for path in page_folder().rglob("*")
        if path.suffix in (".html", ".css", ".js") and "dicom-parser" not in str(path)
    ]
    assert len(own) > 20
    for path in own:
        text = path.read_text()
        assert not re.search(r"""(src|href)=["']https?:|url\(["']?https?:|import .*https?:|fetch\(["']http""", text), (
            path
        )
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path


@pytest.mark.slow
def test_a_wheel_carries_page_student_and_all_other_data(tmp_path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, and building without it would need the network")
    copy = tmp_path / "source"
    for name in ("hf_kdmri", "dataset_script", "model_cards", "space", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    data = {
        path.relative_to(copy).as_posix()
        for pattern in ("hf_kdmri/**/*", "dataset_script/**/*", "model_cards/**/*")
        for path in copy.glob(pattern)
        if path.suffix in (".py", ".csv", ".md", ".jinja", ".json")
    }
    page = {f"hf_kdmri/{path.relative_to(copy).as_posix()}" for path in copy.glob("space/**/*") if path.is_file()}
    assert len(page) > 30
    student = copy / "models" / "kdmri-student"
    files = [path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()]
    page |= {f"hf_kdmri/student/{name}" for name in files}
    assert "hf_kdmri/student/model.safetensors" in page
    assert (data | page) - carried == set()


def test_the_committed_page_is_where_a_checkout_has_it() -> None:
    if (ROOT / "pyproject.toml").is_file():
        assert page_folder() == ROOT / "space"
