"""The second task: its loss by hand, its invariances, and that it teaches any model, with a teacher or without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.distillation import DistillationModel, LossOptions, TumourMaskHead, tumour_mask_loss
from tests.conftest import LABELS


def square(size: int = 32, side: int = 8) -> torch.Tensor:
    masks = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    masks[0, :, :side, :side] = 255
    masks[1, :, side:, side:] = 255
    return masks


def test_values_by_hand() -> None:
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[..., :2, :] = 255
    logits = torch.zeros(1, 1, 2, 2)  # p = 1/2 everywhere, half of the positions are tumour
    dice = (2 * 2 * 0.5 + 1) / (4 * 0.25 + 2 + 1)
    expected = torch.log(torch.tensor(2.0)) + 1 - dice
    torch.testing.assert_close(tumour_mask_loss(logits, masks), expected)


def test_a_cell_that_is_half_tumour_has_the_target_one_half() -> None:
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[..., 0] = 255  # the left half of the left cells
    half = torch.tensor([[[[0.0, -30.0], [0.0, -30.0]]]])
    right = tumour_mask_loss(half, masks)
    assert all(tumour_mask_loss(half + change, masks) > right for change in (-1.0, 1.0))


def test_nothing_to_draw_and_nothing_drawn_costs_nothing() -> None:
    empty = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    assert tumour_mask_loss(torch.full((2, 1, 4, 4), -30.0), empty) < 1e-6
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    tumour_mask_loss(logits, empty).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_batch_order_and_flips_do_not_matter() -> None:
    masks, logits = square(), torch.randn(2, 1, 8, 8)
    loss = tumour_mask_loss(logits, masks)
    torch.testing.assert_close(tumour_mask_loss(logits.flip(0), masks.flip(0)), loss)
    torch.testing.assert_close(tumour_mask_loss(logits.flip(3), masks.flip(3)), loss)


def test_gradient() -> None:
    masks = square(8, 4)
    logits = torch.randn(2, 1, 4, 4, dtype=torch.double, requires_grad=True)
    # in float32 inside, so that half precision around it does no harm: compared with finite differences to that
    assert torch.autograd.gradcheck(lambda z: tumour_mask_loss(z, masks).double(), (logits,), eps=1e-2, atol=1e-3)


def test_stable_under_bfloat16_and_for_huge_logits() -> None:
    masks = square()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = TumourMaskHead([8, 16], width=16)
        loss = tumour_mask_loss(head([torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]), masks)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in head.parameters())
    huge = torch.full((2, 1, 8, 8), 1e4, requires_grad=True)
    tumour_mask_loss(huge, masks).backward()
    assert huge.grad is not None and huge.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 8, 8), (3, 1, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="as many masks"):
        tumour_mask_loss(torch.zeros(shape), square())


def test_the_head_sees_each_image_alone_and_every_stage() -> None:
    head = TumourMaskHead([8, 16], width=16)
    stages = [torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(2, 16, 4, 4, requires_grad=True)]
    drawn = head(stages)
    torch.testing.assert_close(head([maps[:1] for maps in stages]), drawn[:1])
    drawn[0].sum().backward()
    for maps in stages:
        assert maps.grad is not None and maps.grad[0].abs().sum() > 0 and not maps.grad[1].any()
    with pytest.raises(ValueError, match="width is 12"):
        TumourMaskHead([8], width=12)


@pytest.mark.parametrize("taught", [False, True])
def test_every_model_that_trains_draws(taught: bool) -> None:
    student = StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64)
    teacher = TeacherForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64) if taught else None
    model = DistillationModel(student, teacher, loss_options=LossOptions(mask_weight=0.5)).train()
    views, labels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8), torch.tensor([0, 1])
    output = model(views, labels=labels, masks=square(64, 20))
    terms = output.terms
    assert set(terms) == {"ce", "mask", *(["logit"] if taught else [])}
    expected = terms["ce"] + 0.5 * terms["mask"] + (terms["logit"] if taught else 0)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.heads.parameters())
    with pytest.raises(ValueError, match="needs a tumour mask"):
        model(views, labels=labels)
    assert set(model.eval()(views, labels=labels).terms) == {"ce"}  # nothing is drawn after training
    assert not any(key.startswith("heads") for key in student.state_dict())


def test_drawing_can_be_learnt() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
    head = TumourMaskHead([8], width=8)
    masks = square(16, 6)
    images = masks.float() / 255 + 0.1 * torch.randn(2, 1, 16, 16)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(60):
        loss = tumour_mask_loss(head([model(images)]), masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
