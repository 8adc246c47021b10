from __future__ import annotations

import doctest
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import log_softmax, softmax
from transformers import AutoModelForImageClassification

from hf_kdmri import StudentForImageClassification
from hf_kdmri.evaluation.calibration.errors import expected_calibration_error, negative_log_likelihood
from hf_kdmri.evaluation.calibration.temperature import (
    FittedOn,
    Temperature,
    apply_temperature,
    fit_temperature,
    log_probabilities,
)
from hf_kdmri.inference import ImageClassifier, save_temperature
from hf_kdmri.models.image_classification import KDConfig
from tests.conftest import LABELS, ROOT
from tests.test_calibration import calibrated


def fit(logits, labels, **options):
    return fit_temperature(logits, labels, **{"split": "validation", "groups": None, **options})


@pytest.mark.parametrize("truth", [0.5, 1.0, 1.7, 4.0])
def test_a_known_temperature_is_recovered(truth) -> None:
    logits, labels = calibrated(20_000, temperature=truth)
    temperature = fit(logits, labels)
    assert temperature.value == pytest.approx(truth, rel=0.05)
    fresh, fresh_labels = calibrated(20_000, seed=1, temperature=truth)
    scores = apply_temperature(fresh, temperature, groups=None)
    assert expected_calibration_error(scores, fresh_labels) < 0.015
    assert temperature.nll_after <= temperature.nll_before
    assert (scores.argmax(axis=1) == fresh.argmax(axis=1)).all()


def test_the_likelihood_is_flat_at_the_minimum() -> None:
    """There, the mean logit of the label equals the mean logit expected under the scaled probabilities."""
    logits, labels = calibrated(300, temperature=1.6)
    temperature = fit(logits, labels)
    scores = apply_temperature(logits, temperature, groups=None)
    expected = (scores * logits).sum(axis=1).mean()
    assert expected == pytest.approx(logits[np.arange(300), labels].mean(), abs=1e-6)
    assert negative_log_likelihood(scores, labels) == pytest.approx(temperature.nll_after)


def test_scikit_learn_finds_the_same() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    scaling = getattr(calibration, "_TemperatureScaling", None)
    if scaling is None:
        pytest.skip("scikit-learn has temperature scaling from 1.8 on")
    logits, labels = calibrated(300, temperature=1.6)
    assert fit(logits, labels).value == pytest.approx(1 / scaling().fit(logits, labels).beta_, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 4))
def test_log_probabilities_serve_as_well_as_logits(seed, truth) -> None:
    logits, labels = calibrated(200, seed, truth)
    value = fit(logits, labels).value
    assert value > 0
    shifted = logits + np.random.default_rng(seed).normal(size=(200, 1))
    for other in (shifted, log_softmax(logits, axis=1), log_probabilities(softmax(logits, axis=1))):
        assert fit(other, labels).value == pytest.approx(value, rel=1e-5)
    assert fit(3 * logits, labels).value == pytest.approx(3 * value, rel=1e-5)


def test_a_probability_of_zero_has_a_logarithm() -> None:
    assert np.isfinite(log_probabilities(np.array([[1, 0]], dtype=np.float32))).all()


GOOD = np.array([[2.0, 0], [2, 0], [0, 2], [0, 2], [0, 2]])
MIXED = [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (GOOD, [0, 0, 1, 1, 1], {}, "none of the 5 validation predictions is wrong.*uncalibrated"),
        (GOOD, [1, 1, 0, 0, 0], {}, "no better than chance"),
        (0 * GOOD, MIXED, {}, "none of the 5 validation predictions is wrong"),
        (GOOD, [0] * 5, {}, "all 5 validation labels are of class 0"),
        (1e6 * GOOD, MIXED, {}, "runs to an end"),
        (GOOD, [0, 1], {}, r"labels have shape \(2,\)"),
        (GOOD, [0, 1, 1, 1, 2], {}, "integers 0..1"),
        (GOOD, [0.0, 1, 1, 1, 0], {}, "type float64"),
        (GOOD[:, :1], MIXED, {}, "C >= 2"),
        (GOOD[:0], [], {}, "N >= 1"),
        (np.where(GOOD > 0, 0, -np.inf), MIXED, {}, "row 0 are not finite.*log_probabilities"),
        (softmax(GOOD, axis=1), MIXED, {}, "these rows are probabilities"),
        (GOOD, MIXED, {"split": "test"}, "split is 'test'.*validation"),
        (GOOD, MIXED, {"split": "train"}, "split is 'train'"),
        (GOOD, MIXED, {"split": ""}, "split is ''"),
        (GOOD, MIXED, {"groups": ["a"]}, "1 groups for 5 rows"),
        (GOOD, MIXED, {"groups": ["a", "b", None, "c", float("nan")]}, r"row 2 is missing \(2 such rows\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(logits, labels, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(logits, labels, **options)


def test_rows_of_a_fitted_patient_are_not_scored() -> None:
    temperature = fit(GOOD, MIXED, groups=[1, 2, 3, 4, 5])
    assert temperature.fitted_on == FittedOn("validation", 5, frozenset("12345"))
    with pytest.raises(ValueError, match=r"2 of the groups .*split 'validation'.* first is '2'"):
        apply_temperature(GOOD, temperature, groups=["2", 5, "7", "8", "9"])  # ids are compared as text
    with pytest.raises(ValueError, match="2 groups for 5 rows"):
        apply_temperature(GOOD, temperature, groups=["x", "y"])
    assert apply_temperature(GOOD, temperature, groups=[6, 7, 8, 9, 10]).shape == (5, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64).save_pretrained(tmp_path / "s")
    return tmp_path / "s"


def noise(count: int = 3) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def test_a_stored_temperature_divides_the_logits_where_asked_for(folder) -> None:
    model = StudentForImageClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.timm_model.head.weight)  # a fresh head's logits are nearly equal
    model.save_pretrained(folder)
    before = ImageClassifier(str(folder)).probabilities(noise())
    save_temperature(folder, 2.5)
    assert np.array_equal(ImageClassifier(str(folder)).probabilities(noise()), before)
    scaled = ImageClassifier(str(folder), calibrated=True).probabilities(noise())
    temperature = Temperature(2.5, FittedOn("validation", 1, None), 1.0, 1.0)
    np.testing.assert_allclose(scaled, apply_temperature(np.log(before), temperature, groups=None), atol=1e-6)
    assert np.abs(scaled - before).max() > 0.01


def test_storing_changes_nothing_else_and_writes_what_transformers_would(folder) -> None:
    path = folder / "config.json"
    first = path.read_bytes()
    assert save_temperature(folder, Temperature(1.5, FittedOn("validation", 9, None), 1.0, 0.9)) == path
    stored = path.read_bytes()
    assert json.loads(stored) == {**json.loads(first), "calibration_temperature": 1.5}
    model = StudentForImageClassification.from_pretrained(folder)
    assert model.config.calibration_temperature == 1.5
    model.save_pretrained(folder)
    assert path.read_bytes() == stored
    save_temperature(folder, None)
    assert path.read_bytes() == first
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_model_without_a_temperature_names_the_way_out(folder) -> None:
    with pytest.raises(ValueError, match=r"no calibration_temperature.*fit_temperature.*save_temperature"):
        ImageClassifier(str(folder), calibrated=True)


@pytest.mark.parametrize("value", [0, -1.0, "warm", True])
def test_an_edited_config_is_refused(folder, value) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "calibration_temperature": value}))
    with pytest.raises(ValueError, match=rf"calibration_temperature in .* is {value!r}; expected a finite number"):
        ImageClassifier(str(folder), calibrated=True)


def test_useless_temperatures_are_not_stored(folder, tmp_path) -> None:
    for value in (0.0, -2.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            save_temperature(folder, value)
        with pytest.raises(StrictDataclassClassValidationError, match="expected a finite number above 0"):
            KDConfig(calibration_temperature=value)
    with pytest.raises(FileNotFoundError, match="folder of a saved model"):
        save_temperature(tmp_path, 1.5)


def test_other_loaders_give_the_same_logits(folder) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = StudentForImageClassification.from_pretrained(folder)(pixels).logits
        save_temperature(folder, 1.7)
        auto = AutoModelForImageClassification.from_pretrained(folder)
        assert auto.config.calibration_temperature == 1.7
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(StudentForImageClassification.from_pretrained(folder)(pixels).logits, expected)
        torch.testing.assert_close(auto(pixels).logits, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(plain(pixels), expected, atol=1e-6, rtol=0)


OUTSIDE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_kdmri":
            raise ImportError("hf_kdmri must not be needed")
sys.meta_path.insert(0, Refuse())
import json, timm, torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
folder, again = sys.argv[1:]
auto = AutoModelForImageClassification.from_pretrained(folder)
pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
with torch.no_grad():
    logits = auto(pixels).logits[0], timm.create_model("local-dir:" + folder, pretrained=True).eval()(pixels)[0]
auto.save_pretrained(again)
kept = AutoModelForImageClassification.from_pretrained(again).config.calibration_temperature
scores = pipeline("image-classification", model=folder)(Image.new("L", (50, 70), 90))
print(json.dumps({"logits": [z.tolist() for z in logits], "kept": kept, "sum": sum(row["score"] for row in scores)}))
"""


@pytest.mark.slow
def test_the_folder_loads_and_keeps_its_temperature_where_this_package_cannot_be_imported(folder, tmp_path) -> None:
    save_temperature(folder, 1.7)
    arguments = [sys.executable, "-c", textwrap.dedent(OUTSIDE), str(folder), str(tmp_path / "again")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    outside = json.loads(done.stdout.splitlines()[-1])
    assert outside["kept"] == 1.7
    assert outside["sum"] == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        expected = StudentForImageClassification.from_pretrained(folder)(pixels).logits[0]
    for logits in outside["logits"]:
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-6, rtol=0)


def test_the_code_in_the_documentation_runs() -> None:
    text = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    text = text.replace("```", "\n")  # a fence would be read as expected output
    test = doctest.DocTestParser().get_doctest(text, {}, "calibration.md", "docs/calibration.md", 0)
    assert len(test.examples) > 10
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
