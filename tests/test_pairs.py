"""Any teacher with any student: one step of every pair of a matrix of timm families, and the example of the guide.

The networks are real timm architectures in small variants, narrowed where timm has arguments for it. No two of a pair
take inputs of one size; normalisations and numbers of stages differ over the matrix.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification, distillation
from hf_kdmri.distillation import LossOptions
from hf_kdmri.distillation.options import TERMS
from tests.conftest import LABELS, ROOT


class Network(NamedTuple):
    """A timm architecture, small."""

    architecture: str
    image_size: int
    num_scales: int = 3
    model_args: dict[str, Any] | None = None


SHALLOW = dict(depths=(1, 1, 2, 1))
NARROW_VIT = dict(depth=4, embed_dim=48, num_heads=3)
NARROW_SWIN = dict(**SHALLOW, embed_dim=16, num_heads=(1, 2, 4, 8), window_size=4)
TEACHERS = {
    "convnext": Network("convnext_atto", 96, 4, dict(**SHALLOW, dims=(16, 32, 48, 64))),
    "resnet": Network("resnet10t", 96, 3),
    "efficientnet_lite": Network("tf_efficientnet_lite0", 128, 3),
    "regnet": Network("regnetx_002", 112, 2),
    "swin": Network("swin_tiny_patch4_window7_224", 128, 3, NARROW_SWIN),
    "swinv2": Network("swinv2_tiny_window8_256", 128, 4, NARROW_SWIN),
    "vit": Network("vit_tiny_patch16_224", 96, 3, NARROW_VIT),
    "deit3": Network("deit3_small_patch16_224", 112, 2, NARROW_VIT),
    "dinov3": Network("vit_small_patch16_dinov3", 128, 4, NARROW_VIT),
    "maxvit": Network("maxvit_pico_rw_256", 128, 3),
    "efficientvit": Network("efficientvit_b1", 96, 3),
    "mobilenetv4": Network("mobilenetv4_hybrid_medium_075", 128, 3),
}
STUDENTS = {
    "vit": Network("vit_tiny_patch16_224", 80, 3, NARROW_VIT),
    "efficientvit": Network("efficientvit_b0", 64, 4),
    "tinyvit": Network("tiny_vit_5m_224", 64, 3, dict(**SHALLOW, embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4))),
    "mobilenetv4": Network("mobilenetv4_conv_small_035", 64, 3),
    "repvit": Network("repvit_m0_9", 64, 2),
    "fastvit": Network("fastvit_t8", 64, 3),
    "mobilevitv2": Network("mobilevitv2_050", 64, 4),
    "efficientformerv2": Network("efficientformerv2_s0", 64, 1),
}
# teacher, student: CNN→ViT, ViT→CNN, CNN→hybrid, plain ViT→CNN, same family; three stages each, as "review" needs them
KINDS = [
    ("resnet", "vit"),
    ("swin", "mobilenetv4"),
    ("efficientnet_lite", "fastvit"),
    ("vit", "mobilenetv4"),
    ("mobilenetv4", "mobilenetv4"),
]
VARIANTS = [
    dict(feature_loss="hint", geometry_difference="smooth_l1"),
    dict(feature_loss="attention_transfer", sample_loss="similarity_preserving", logit_loss="dkd"),
    dict(feature_loss="review", sample_loss="cka", logit_loss="dist"),
    dict(feature_loss="partial_cross_attention", sample_loss="gromov_wasserstein", geometry_difference="kl"),
    dict(feature_loss="groupwise_linear", geometry_difference="cka", standardize_logits=True),
    dict(feature_loss="masked_generation", geometry_grid=3),
    dict(feature_loss="orthogonal_projection", geometry_grid=14),
]
ALL_TERMS = {f"{term}_weight": 1.0 for term in TERMS}
BATCH = 4  # the fewest images that the terms between images take


@cache
def teacher_network(name: str) -> TeacherForImageClassification:
    return _build(TeacherForImageClassification, TEACHERS[name])


@cache
def student_network(name: str) -> StudentForImageClassification:
    """With every residual branch open.

    TinyViT, RepViT and MobileViT v2 start the last normalisation of their branches at 0, so what stands before it
    in the branch has no gradient in the very first step, with any loss.
    """
    student = _build(StudentForImageClassification, STUDENTS[name])
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.constant_(module.weight, 0.5)
    return student


def _build(kind: Any, network: Network) -> Any:
    return kind.from_timm(
        network.architecture,
        labels=LABELS,
        image_size=network.image_size,
        num_scales=network.num_scales,
        model_args=network.model_args,
    )


def one_step(teacher_name: str, student_name: str, options: LossOptions) -> None:
    """Forward, backward and update; everything that a pair must get right."""
    teacher, student = teacher_network(teacher_name), copy.deepcopy(student_network(student_name))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = DistillationModel(student, teacher, loss_options=options).train()
    views = torch.randint(0, 256, (BATCH, 1, 104, 104), dtype=torch.uint8)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=1e-3)

    output = model(views, labels=torch.tensor([0, 1, 2, 1]))
    assert set(output.terms) == {"ce", *TERMS}
    assert all(term.isfinite() for term in output.terms.values()), output.terms
    assert output.terms["geometry"] > 0 and output.terms["sample"] > 0
    output.loss.backward()
    for part in (student, model.heads):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            assert parameter.grad.any(), f"the gradient of {name} is zero"
    optimiser.step()
    assert all(parameter.isfinite().all() for parameter in trainable)

    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_one_step_of_every_pair(teacher, student):
    one_step(teacher, student, LossOptions(**ALL_TERMS, feature_loss="ofa", geometry_grid=4))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant["feature_loss"])
@pytest.mark.parametrize(("teacher", "student"), KINDS, ids=["-".join(pair) for pair in KINDS])
def test_one_step_of_every_kind_of_pair_with_every_other_loss(teacher, student, variant):
    if "gromov_wasserstein" in variant.values():
        pytest.importorskip("ot", reason="Gromov-Wasserstein needs POT")
    one_step(teacher, student, LossOptions(**ALL_TERMS, **variant))


def test_the_matrix_has_unequal_sizes_normalisations_and_numbers_of_stages():
    pairs = [(teacher_network(teacher), student_network(student)) for teacher in TEACHERS for student in STUDENTS]
    assert len(TEACHERS) >= 12 and len(STUDENTS) >= 8
    assert all(teacher.image_size != student.image_size for teacher, student in pairs)
    unequal = [(t.pixel_mean, t.pixel_std) != (s.pixel_mean, s.pixel_std) for t, s in pairs]
    assert sum(unequal) > len(pairs) / 3
    stages = {(len(teacher.stage_channels), len(student.stage_channels)) for teacher, student in pairs}
    assert {(2, 4), (3, 3), (4, 1), (4, 2)} <= stages


@pytest.mark.parametrize("network", [*TEACHERS, *(name for name in STUDENTS if name not in TEACHERS)])
def test_logits_beside_the_stages_are_the_logits(network):
    model = teacher_network(network) if network in TEACHERS else copy.deepcopy(student_network(network)).eval()
    pixels = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        logits, stages = model.eval().stage_features(pixels)
        torch.testing.assert_close(logits, model(pixels).logits)
    assert [maps.shape[1] for maps in stages] == model.stage_channels
    sides = [maps.shape[-1] for maps in stages]
    assert sides == sorted(sides, reverse=True), "finest first"


def guide_blocks(language: str) -> list[str]:
    guide = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", guide, flags=re.DOTALL)


def test_the_example_of_the_guide_runs() -> None:
    (example,) = guide_blocks("python")
    names: dict[str, Any] = {}
    exec(compile(example, "docs/losses.md", "exec"), names)
    assert names["loss"].isfinite()
    assert all(parameter.grad is not None for parameter in names["student"].parameters())
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())


def test_the_guide_has_every_option_with_its_default_and_every_public_name():
    defaults, whole_method = (yaml.safe_load(block) for block in guide_blocks("yaml"))
    assert defaults == asdict(LossOptions())
    LossOptions(**whole_method)
    guide = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    plumbing = {"DistillationOutput", "Features", "distillation_terms", "teacher_column_order", "DistillationHeads"}
    plumbing |= {"TeacherTargets", "teacher_targets", "TeacherCompileError"}
    missing = [name for name in distillation.__all__ if name not in guide and name not in plumbing]
    assert not missing
