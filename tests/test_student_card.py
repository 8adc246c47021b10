"""What the card of a finished run says of its loss."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from hf_kdmri.distillation import LossOptions
from hf_kdmri.hub.card_text import citations
from hf_kdmri.training.options import ModelOptions
from hf_kdmri.training.report.student_card import first_weights, losses_text, methods_cited


def test_parts_that_are_off_by_default_are_named_only_if_they_are_on():
    assert list(losses_text(LossOptions())) == ["cross-entropy", "Hinton distillation"]
    geometry = LossOptions(geometry_weight=1.0)
    assert list(losses_text(geometry)) == ["cross-entropy", "Hinton distillation", "fused spatial similarity"]
    told = losses_text(
        LossOptions(
            logit_loss="dist",
            geometry_weight=1.0,
            lesion_weighting=True,
            sample_weight=0.5,
            exit_weight=0.25,
            feature_weight=2.0,
            feature_loss="review",
            mask_weight=0.5,
            label_smoothing_factor=0.1,
            shuffle_teacher=True,
        )
    )
    assert told["cross-entropy"] == "weight 1, labels smoothed by 0.1"
    assert told["DIST"] == "weight 1.0, temperature 4.0" and "Hinton distillation" not in told
    assert told["fused spatial similarity"].endswith("positions weighted by the tumour mask")
    assert told["geometry between images (rkd)"] == "weight 0.5"
    assert told["exit behind the top-down fusion"] == "weight 0.25"
    assert told["features (review)"] == "weight 2.0"
    assert told["drawing the tumour mask (cross-entropy and Dice)"] == "weight 0.5, teacher too"
    assert "another one" in told["control"]


def test_only_what_was_used_is_cited():
    plain = methods_cited(LossOptions())
    assert "hinton2015distilling" in plain and "liu2019structured" not in plain
    cited = methods_cited(LossOptions(logit_loss="dkd", geometry_weight=1.0, sample_weight=1.0, exit_weight=1.0))
    assert {"zhao2022decoupled", "liu2019structured", "park2019relational", "hao2023one"} < set(cited)
    assert "hinton2015distilling" not in cited
    assert citations(cited).count("@") == len(cited)


def test_what_the_models_started_from_is_told_without_folders(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "told.safetensors", metadata={"origin": "half of a larger network"})
    assert first_weights(ModelOptions()) == {"teacher": "untrained", "student": "untrained"}
    assert first_weights(ModelOptions(teacher_pretrained=True))["teacher"] == "timm's ImageNet weights"
    given = ModelOptions(
        teacher_weights=str(tmp_path / "plain.safetensors"), student_weights=str(tmp_path / "told.safetensors")
    )
    assert first_weights(given) == {
        "teacher": "plain.safetensors",
        "student": "told.safetensors: half of a larger network",
    }
    assert first_weights(ModelOptions(teacher="jane/big"))["teacher"] == "taken as it is from jane/big"
    assert str(tmp_path) not in first_weights(ModelOptions(teacher=str(tmp_path)))["teacher"]
