from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_kdmri import StudentForImageClassification
from hf_kdmri.hub import StudentCardFacts, write_student_card

LABELS = ["meningioma", "glioma", "pituitary"]
PATIENTS = {"accuracy": 0.875, "macro_f1": 0.861, "balanced_accuracy": 0.852, "n": 42}
RECALLS = {"meningioma": 0.811, "glioma": 0.902, "pituitary": None}


def make_facts(**changes) -> StudentCardFacts:
    row = {"architecture": "test_vit", "accuracy": 0.9215, "macro_f1": 0.905, "parameters": 371_000, "n": 612}
    row |= {"patient_accuracy": 0.875, "ms_per_image": 4.1}
    facts = {
        "model_name": "kdmri-student",
        "results": [
            {**row, "model": "Teacher", "architecture": "tf_efficientnet_lite2", "accuracy": 0.943},
            {**row, "model": "Student alone", "accuracy": 0.893},
            {**row, "model": "Distilled student", "recall_per_class": RECALLS, "patients": PATIENTS},
        ],
        "teacher": "tf_efficientnet_lite2",
        "losses": {"cross-entropy": "weight 1", "Hinton KD": "weight 0.9, T 4"},
        "split": "patient_groups",
        "fold": 3,
        "seed": 17,
        "training_command": "accelerate launch train_kd.py --config configs/figshare.yaml --fold 3",
        "versions": {"torch": "2.15.0", "timm": "1.0.31"},
        "machine": "2 cores of an Intel Xeon",
    }
    return StudentCardFacts(**{**facts, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch) -> Path:
    """A model folder, in a test that cannot use the network."""

    def refuse(*_, **__):
        raise AssertionError("the card used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    return tmp_path


def test_metadata_follow_the_hubs_rules(folder) -> None:
    path = write_student_card(folder, make_facts(dataset_id="jane/figshare-brain-tumor"))
    assert path == folder / "README.md"
    front = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.S)
    assert front is not None
    data = yaml.safe_load(front[1])
    assert data["pipeline_tag"] == "image-classification"
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["jane/figshare-brain-tumor"]
    assert data["metrics"] == ["accuracy", "f1"]
    (result,) = data["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"]["config"] == "patient_groups"
    assert result["dataset"]["split"] == "test"
    assert result["dataset"]["args"] == {"fold": 3}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "Accuracy over slices": 0.9215,
        "Macro F1 over slices": 0.905,
        "Accuracy over patients": 0.875,
    }
    assert ModelCard.load(path).data.model_name == "kdmri-student"


def test_the_page_says_what_it_must(folder) -> None:
    text = write_student_card(folder, make_facts(data_note="The images were re-encoded as JPEG.")).read_text("utf-8")
    for expected in (
        "Research use only. Not a medical device.",
        'There is no "no tumour" class: a healthy slice still gets a tumour name.',
        "CC BY 4.0",
        "10.6084/m9.figshare.1512427",
        "e0140381",
        "e0157112",
        "94.1 % when slices are split at random and 68.9 %",
        "fold 3, seed 17",
        "| Teacher | tf_efficientnet_lite2 | 94.3 % |",
        "| Student alone | test_vit | 89.3 % |",
        "| Distilled student | test_vit | 92.2 % | 90.5 % | 87.5 % | 0.37 M |",
        "| Distilled student | 81.1 % | 90.2 % | – |",
        "| Distilled student | 87.5 % | 86.1 % | 85.2 % | 42 |",
        "accelerate launch train_kd.py --config configs/figshare.yaml --fold 3",
        "- Hinton KD: weight 0.9, T 4",
        "torch 2.15.0, timm 1.0.31",
        "The input is 64×64 pixels",
        "16-bit images saturate",
        "2 cores of an Intel Xeon",
        "The images were re-encoded as JPEG.",
        "0 meningioma, 1 glioma, 2 pituitary",
    ):
        assert expected in text, expected
    assert "PHANTOM" not in text
    assert "needed]" not in text.lower()
    assert "information needed" not in text.lower()
    assert "{{" not in text
    assert "{%" not in text
    assert "\n\n\n" not in text


def test_phantom_cards_are_loud_and_claim_nothing_about_mri(folder) -> None:
    path = write_student_card(folder, make_facts(phantom=True, dataset_id="jane/figshare-brain-tumor"))
    card = ModelCard.load(path)
    assert "TRAINED ON GENERATED PHANTOMS" in card.text.split("##")[0]
    assert "good for nothing but testing software" in card.text
    assert card.data.datasets is None
    assert {result.dataset_name for result in card.data.eval_results} == {"Generated phantom slices"}
    assert "not-for-use" in card.data.tags
    assert "names the tumour" not in card.text


def test_a_card_of_the_student_alone_speaks_of_that_one(folder) -> None:
    text = write_student_card(folder, make_facts(described="Student alone")).read_text("utf-8")
    assert "It was trained without a teacher" in text and "It was distilled" not in text
    assert "those of the student alone" in text and "The distilled student's loss" not in text
    head = yaml.safe_load(text.split("---")[1])
    assert "knowledge-distillation" not in head["tags"] and "timm" in head["tags"]
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.893


def test_a_run_without_a_baseline_does_not_speak_of_one(folder) -> None:
    results = [row for row in make_facts().results if row["model"] != "Student alone"]
    assert "Student alone" not in write_student_card(folder, make_facts(results=results)).read_text("utf-8")


@pytest.mark.parametrize(
    ("split", "warning"), [("random_slices", "this split leaks"), ("cvind", "divide 15 of the 18 groups")]
)
def test_leaking_splits_say_so(split, warning, folder) -> None:
    assert warning in write_student_card(folder, make_facts(split=split)).read_text("utf-8")


def test_strings_from_outside_show_as_text(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = ["<script>alert(1)</script>", "a|b", "---\nlicense: other"]
    (folder / "config.json").write_text(json.dumps(config))
    evil = "`x`\n```\n<img src=x onerror=alert(1)>\n```"
    facts = make_facts(teacher=evil, training_command=evil, machine="{{ 7 * 7 }}", losses={"<b>": "|"})
    path = write_student_card(folder, facts)
    text, code = path.read_text("utf-8"), re.compile(r"^(`{3,})\w*\n.*?^\1$", re.S | re.M)
    outside = code.sub("", text)
    assert "<script>" not in outside
    assert "<img" not in outside
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in outside
    assert "{{ 7 \\* 7 }}" in outside
    assert ModelCard.load(path).data.license == "apache-2.0"


def test_the_snippets_run(saved, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("timm")
    text = write_student_card(saved, make_facts()).read_text("utf-8")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 70), dtype=np.uint8)).save(tmp_path / "slice.png")
    Image.fromarray(rng.integers(0, 4000, (80, 70), dtype=np.uint16)).save(tmp_path / "slice_16bit.png")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) == 3
    spaces: list[dict] = [{}, {}, {}]
    for snippet, space in zip(snippets, spaces, strict=True):
        exec(snippet.replace("path/to/student", str(saved)), space)
    by_pipeline = {row["label"]: row["score"] for row in spaces[0]["classify"]("slice.png")}
    by_timm = dict(zip(LABELS, spaces[1]["probabilities"].tolist(), strict=True))
    assert by_timm == pytest.approx(by_pipeline, abs=1e-5)
    assert spaces[2]["image"].mode == "RGB"
    assert spaces[2]["pixels"].min() == 0
    assert spaces[2]["pixels"].max() == 255
    (saved / "README.md").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "by_magic"}, "expected one of patient_groups, cvind, random_slices"),
        ({"repo_id": "a b/c"}, "a b/c"),
        ({"training_command": " "}, "training_command is empty"),
        ({"results": [{"model": "Teacher"}]}, "expected one named 'Distilled student'"),
    ],
)
def test_facts_that_make_a_false_card_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_facts(**change)


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        write_student_card(tmp_path, make_facts())
    (tmp_path / "config.json").write_text('{"architecture": "x"}')
    with pytest.raises(ValueError, match="label_names"):
        write_student_card(tmp_path, make_facts())
