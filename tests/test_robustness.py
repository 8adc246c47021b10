from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.views import ViewDataset
from hf_kdmri.evaluation.robustness.accuracy import (
    accuracy_draws,
    evaluate_robustness,
    robustness_table,
    stratified_subset,
)
from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES, corrupt
from hf_kdmri.models import prepare_pixels
from tests.conftest import LABELS
from tests.tiny import tiny_views

PLAIN = ["contrast", "brightness", "vertical_flip"]
GROUPS = [f"p{i % 20}" for i in range(32)]


@pytest.fixture(scope="module")
def models() -> dict:
    torch.manual_seed(1)
    return {
        "teacher": TeacherForImageClassification.from_timm("test_convnext", labels=LABELS, image_size=64),
        "student": StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32),
    }


@pytest.fixture(scope="module")
def results(models) -> dict:
    return evaluate_robustness(models, tiny_views(), groups=GROUPS, corruptions=PLAIN, batch_size=5, seed=2)


def test_accuracies_are_those_of_each_model_in_its_own_size(models, results) -> None:
    views = tiny_views()
    batch = torch.from_numpy(np.stack([views.view(row) for row in range(32)]))
    for name, model in models.items():
        summary = results["models"][name]
        for corruption in PLAIN:
            for level, accuracy in enumerate(summary["accuracy"][corruption], start=1):
                pixels = prepare_pixels(
                    corrupt(batch, range(32), corruption, level, seed=2),
                    image_size=model.image_size,
                    mean=model.pixel_mean,
                    std=model.pixel_std,
                )
                with torch.inference_mode():
                    predicted = model(pixels).logits.argmax(1).numpy()
                assert accuracy == pytest.approx((predicted == views.labels).mean()), (name, corruption, level)


def test_drops_follow_from_accuracies(results) -> None:
    for summary in results["models"].values():
        for corruption, accuracies in summary["accuracy"].items():
            assert len(accuracies) == len(SEVERITIES[corruption])
            expected = summary["clean_accuracy"] - np.mean(accuracies)
            assert summary["drop"][corruption] == pytest.approx(expected)
            low, high = summary["drop_interval"][corruption] or [expected, expected]  # None where all draws agree
            assert low - 1e-9 <= expected <= high + 1e-9
        assert summary["mean_drop"] == pytest.approx(np.mean(list(summary["drop"].values())))
        assert summary["relative_drop"] == pytest.approx(summary["mean_drop"] / summary["clean_accuracy"])
        low, high = summary["mean_drop_interval"]
        assert low <= summary["mean_drop"] <= high
    assert (results["n"], results["n_patients"], results["view_size"]) == (32, 20, 32)
    assert results["class_names"] == LABELS
    assert results["images_per_second"] > 0


def test_results_are_json_and_repeat(models, results) -> None:
    assert json.loads(json.dumps(results)) == results
    again = evaluate_robustness(models, tiny_views(), groups=GROUPS, corruptions=PLAIN, batch_size=32, seed=2)
    assert again["models"] == results["models"]


def test_without_groups_there_are_no_intervals(models) -> None:
    results = evaluate_robustness(models, tiny_views(), corruptions=["contrast"], max_images=7)
    assert (results["n"], results["n_patients"]) == (7, None)
    assert results["models"]["student"]["mean_drop_interval"] is None
    assert "interval" not in robustness_table(results)


def test_models_return_in_their_mode_and_weights(models) -> None:
    model = models["student"].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate_robustness({"student": model}, tiny_views(), corruptions=["contrast"], max_images=4)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval()


def test_every_corruption_runs_on_colour(models) -> None:
    pytest.importorskip("monai")
    results = evaluate_robustness({"student": models["student"]}, tiny_views(channels=3), max_images=3)
    assert list(results["severities"]) == list(SEVERITIES)
    assert results["n"] == 3


def test_table_states_points_pictures_and_patients(results) -> None:
    table = robustness_table(results)
    head, rule, *rows = table.split("\n\n")[0].splitlines()
    assert head == "| Accuracy lost [points] | teacher | student |"
    assert rule == "| :-- | --: | --: |"
    assert [row.split(" | ")[0] for row in rows][1:4] == ["| contrast", "| brightness", "| vertical flip"]
    assert "mean over corruptions" in rows[-2]
    assert "95 % interval over patients" in rows[-1]
    assert "32 pictures of 20 patients, views of 32 px, seed 2" in table
    few = robustness_table({**results, "n_patients": 11})
    assert "Fewer than 20 patients allow no interval" in few
    models = {"m": {"clean_accuracy": 0.9, "drop": {"blur": -0.0004}, "mean_drop": -0.0123, "mean_drop_interval": None}}
    shown = robustness_table({**results, "severities": {"blur": [1]}, "models": models})
    for row in (
        "clean accuracy | 90.0 %",
        "blur | 0.0",
        "**mean over corruptions** | **−1.2**",
        "95 % interval over patients | –",
    ):
        assert f"| {row} |" in shown


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57, 99])
def test_subsets_keep_the_shares_of_classes(count) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 50, 30]))
    chosen = stratified_subset(labels, count, seed=4)
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    counts = Counter(labels[chosen].tolist())
    for label, share in enumerate((0.2, 0.5, 0.3)):
        assert abs(counts[label] - share * count) <= 1
    assert set(chosen.tolist()) <= set(stratified_subset(labels, min(100, count + 5), seed=4).tolist())
    assert count < 10 or chosen.tolist() != stratified_subset(labels, count, seed=5).tolist()


def test_intervals_are_wider_over_patients_than_over_pictures() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.8
    correct, groups = np.repeat(right, 10)[None], np.repeat(np.arange(40), 10)
    over_patients = accuracy_draws(correct, groups, draws=4000)
    assert over_patients[0] == pytest.approx(right.mean())
    over_pictures = accuracy_draws(correct, np.arange(400), draws=4000)
    assert over_patients.mean() == pytest.approx(right.mean(), abs=0.01)
    p = right.mean()
    assert over_patients.std() == pytest.approx(np.sqrt(p * (1 - p) / 40), rel=0.1)
    assert over_pictures.std() == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "no models"),
        ({"corruptions": []}, "no corruptions"),
        ({"corruptions": ["snow"]}, "unknown corruption 'snow'"),
        ({"labels": [0, 1]}, r"labels have shape \(2,\); expected \(32,\)"),
        ({"labels": [3] * 32}, "expected 0 to 2"),
        ({"groups": ["a"]}, "there are 1 groups; expected 32"),
        ({"max_images": 0}, "max_images is 0"),
        ({"views": ViewDataset([], np.zeros(0, np.int64), 32)}, "0 views"),
    ],
)
def test_wrong_inputs_are_named(change, message, models) -> None:
    given = {"models": models, "views": tiny_views(), "corruptions": ["blur"]}
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(**{**given, **change})


def test_classes_must_agree(models) -> None:
    other = StudentForImageClassification.from_timm("test_vit", labels=LABELS[::-1], image_size=32)
    with pytest.raises(ValueError, match="other knows the classes"):
        evaluate_robustness({**models, "other": other}, tiny_views(), corruptions=["blur"])
