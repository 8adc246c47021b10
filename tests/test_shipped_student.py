"""The student that comes with the package: it is whole, small, and still says what it said when it was packed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.hub.card_rules import check_card
from hf_kdmri.hub.endpoint_handler import HANDLER
from hf_kdmri.hub.packing import PREDICTIONS
from hf_kdmri.shipped import shipped_student
from tests.conftest import ROOT

FOLDER = shipped_student()
EXPECTED = json.loads((FOLDER / PREDICTIONS).read_text(encoding="utf-8"))
TOLERANCE = 2e-3  # other versions and processors round otherwise


def test_it_says_what_it_said_when_no_model_is_named():
    done = CliRunner().invoke(app, ["predict", str(FOLDER / "samples"), "--json"])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    found = {row["file"].rsplit("/", 1)[-1]: row["scores"] for row in rows}
    assert found.keys() == EXPECTED.keys()
    for name, probabilities in EXPECTED.items():
        assert [found[name][label] for label in LABEL_NAMES] == pytest.approx(probabilities, abs=TOLERANCE)


def test_transformers_own_pipeline_says_the_same():
    classify = pipeline("image-classification", model=str(FOLDER))
    for name, probabilities in EXPECTED.items():
        answers = {answer["label"]: answer["score"] for answer in classify(str(FOLDER / "samples" / name))}
        assert [answers[label] for label in LABEL_NAMES] == pytest.approx(probabilities, abs=TOLERANCE)


def test_the_8_bit_file_names_the_same_classes():
    pytest.importorskip("onnxruntime")
    from hf_kdmri.onnx_inference import OnnxImageClassifier

    small = OnnxImageClassifier(str(FOLDER / "onnx" / "model_int8.onnx"))
    assert small.is_int8
    for name, probabilities in EXPECTED.items():
        picture = Image.open(FOLDER / "samples" / name).convert("RGB")
        assert np.argmax(small.probabilities([picture])[0]) == np.argmax(probabilities)


def test_it_is_small_and_whole():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    model = AutoModelForImageClassification.from_pretrained(FOLDER)
    assert model.num_parameters() <= 2_500_000
    check_card(FOLDER)


def test_its_handler_is_the_one_that_a_push_sends():
    """A copy, since the folder is a repository of its own; pack it again when the handler changes."""
    assert (FOLDER / "handler.py").read_bytes() == HANDLER.read_bytes()


def test_its_card_says_what_it_is_and_on_what_it_was_trained():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Not a medical device" in card and "8-bit" in card and "train_kd.py" in card


@pytest.mark.parametrize(("file", "entry"), [("folds", "alone"), ("short_folds", "hinton")])
def test_its_card_says_what_to_expect_on_all_folds(file: str, entry: str):
    pooled = json.loads((ROOT / "experiments" / f"{file}.json").read_text(encoding="utf-8"))["entries"][entry]
    low, high = pooled["accuracy"]["interval"]
    told = f"{100 * pooled['accuracy']['value']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    assert "easy fold" in (card := (FOLDER / "README.md").read_text(encoding="utf-8")) and told in card
