"""What every loss promises: correct gradients, none for the teacher, full precision, and no NaN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from hf_kdmri.distillation.feature_maps import attention_transfer_loss, hcl_loss, hint_loss
from hf_kdmri.distillation.geometry import spatial_similarity_loss
from hf_kdmri.distillation.kernels import cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.labels import teacher_column_order
from hf_kdmri.distillation.logits import dist_loss, dkd_loss, kd_loss, ofa_loss
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss

LABELS = torch.tensor([0, 2, 1, 1, 0])


def with_labels(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda zs, zt, **options: loss(zs, zt, LABELS, **options)


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "kd": (kd_loss, (5, 3), (5, 3)),
    "kd standardised": (partial(kd_loss, standardize=True), (5, 3), (5, 3)),
    "dkd": (with_labels(dkd_loss), (5, 3), (5, 3)),
    "dkd standardised": (with_labels(partial(dkd_loss, standardize=True)), (5, 3), (5, 3)),
    "dist": (dist_loss, (5, 3), (5, 3)),
    "dist standardised": (partial(dist_loss, standardize=True), (5, 3), (5, 3)),
    "ofa": (with_labels(ofa_loss), (5, 3), (5, 3)),
    "ofa standardised": (with_labels(partial(ofa_loss, standardize=True)), (5, 3), (5, 3)),
    "hint": (hint_loss, (2, 3, 5, 5), (2, 3, 5, 5)),
    "hcl": (hcl_loss, (2, 2, 5, 5), (2, 2, 5, 5)),
    "attention": (attention_transfer_loss, (2, 3, 4, 4), (2, 5, 2, 2)),
    "spatial": (partial(spatial_similarity_loss, grid=2), (2, 3, 4, 4), (2, 5, 2, 2)),
    "rkd distance": (rkd_distance_loss, (5, 3), (5, 4)),
    "rkd angle": (partial(rkd_angle_loss, anchors_at_once=2), (5, 3), (5, 4)),
    "similarity preserving": (similarity_preserving_loss, (5, 3), (5, 4)),
    "cka": (cka_loss, (5, 3), (5, 4)),
    "gromov wasserstein": (partial(gromov_wasserstein_loss, epsilon=0.5), (5, 3), (5, 4)),
}


@pytest.fixture(params=LOSSES)
def case(request) -> tuple[Callable[..., torch.Tensor], tuple[int, ...], tuple[int, ...]]:
    if request.param == "gromov wasserstein":
        pytest.importorskip("ot")
    return LOSSES[request.param]


def test_gradcheck(case):
    loss, shape_s, shape_t = case
    student = torch.randn(shape_s, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape_t, dtype=torch.float64)
    assert loss(student, teacher).dtype == torch.float64 and loss(student, teacher).ndim == 0
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


def test_gradient_reaches_the_student_only(case):
    loss, shape_s, shape_t = case
    student, teacher = torch.randn(shape_s, requires_grad=True), torch.randn(shape_t, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_teacher_may_run_in_inference_mode(case):
    loss, shape_s, shape_t = case
    student = torch.randn(shape_s, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(shape_t)
    loss(student, teacher).backward()
    assert student.grad.isfinite().all()


def test_autocast_changes_nothing(case):
    loss, shape_s, shape_t = case
    student, teacher = torch.randn(shape_s), torch.randn(shape_t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, teacher)
    torch.testing.assert_close(inside, loss(student, teacher), rtol=0, atol=0)


def test_half_precision_is_raised_first(case):
    loss, shape_s, shape_t = case
    student, teacher = torch.randn(shape_s).bfloat16(), torch.randn(shape_t).bfloat16()
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()), rtol=0, atol=0)


@pytest.mark.parametrize("degenerate", ["zero", "equal", "two equal", "huge", "tiny"])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_degenerate_inputs_give_a_finite_loss_and_gradient(case, degenerate, side):
    loss, shape_s, shape_t = case

    def made(shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape)
        if degenerate == "two equal":
            values[1] = values[0]
            return values
        return {
            "zero": torch.zeros(shape),
            "equal": values[:1].expand(shape),
            "huge": 1e4 * values,
            "tiny": 1e-12 * values,
        }[degenerate]

    student = made(shape_s) if side != "teacher" else torch.randn(shape_s)
    teacher = made(shape_t) if side != "student" else torch.randn(shape_t)
    student = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    # Finite is not enough: one step, times a learning rate, must not throw the student away. Features of 1e-12 have
    # gradients of their own size; standardised and correlated logits are divided by a bounded length twice.
    if degenerate != "tiny":
        assert student.grad.abs().max() < (1e8 if loss is LOSSES["dist standardised"][0] else 1e5)


class TestLabels:
    def test_order_is_mapped(self):
        assert teacher_column_order(["a", "b", "c"], ["c", "a", "b"]) == [1, 2, 0]

    @pytest.mark.parametrize("teacher", [["a", "b"], ["a", "b", "d"], ["a", "b", "c", "d"]])
    def test_other_names_are_refused(self, teacher):
        with pytest.raises(ValueError, match=r"teacher's classes .* are not the student's .* fine-tune the teacher"):
            teacher_column_order(["a", "b", "c"], teacher)
