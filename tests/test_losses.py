"""Losses: values by hand, zeros, invariances, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation import (
    fused_spatial_similarity_loss,
    kd_loss,
    spatial_kernel,
    spatial_similarity_loss,
    teacher_column_order,
)


def rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]


class TestHinton:
    def test_value_by_hand(self):
        # Teacher (1/4, 3/4) and student (1/2, 1/2) at T = 1: ¼ ln ½ + ¾ ln 3⁄2.
        zt = torch.tensor([[0.0, math.log(3)]])
        expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
        assert kd_loss(torch.zeros(1, 2), zt, temperature=1).item() == pytest.approx(expected, abs=1e-6)

    def test_temperature_divides_the_logits_and_its_square_multiplies(self):
        zs, zt = torch.randn(5, 3), torch.randn(5, 3)
        expected = 9 * kd_loss(zs / 3, zt / 3, temperature=1)
        torch.testing.assert_close(kd_loss(zs, zt, temperature=3), expected)

    def test_is_torchs_divergence(self):
        zs, zt = torch.randn(7, 3), torch.randn(7, 3)
        expected = F.kl_div((zs / 4).log_softmax(1), (zt / 4).softmax(1), reduction="batchmean") * 16
        torch.testing.assert_close(kd_loss(zs, zt), expected)

    def test_zero_for_equal_logits_up_to_a_constant(self):
        zt = torch.randn(4, 3)
        assert kd_loss(zt + 5, zt).item() == pytest.approx(0, abs=1e-6)

    def test_gradient_reaches_the_student_only(self):
        zs, zt = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
        kd_loss(zs, zt).backward()
        assert zs.grad.abs().sum() > 0 and zt.grad is None

    def test_gradient_keeps_its_size_as_temperature_grows(self):
        zt = torch.randn(64, 3)
        norms = []
        for temperature in (10.0, 100.0):
            zs = torch.zeros(64, 3, requires_grad=True)
            kd_loss(zs, zt, temperature=temperature).backward()
            norms.append(zs.grad.norm().item())
        assert norms[0] == pytest.approx(norms[1], rel=0.1)

    def test_gradcheck(self):
        zt = torch.randn(3, 3, dtype=torch.float64)
        zs = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z: kd_loss(z, zt, temperature=2.0), zs)

    def test_extreme_logits_stay_finite(self):
        zs = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
        loss = kd_loss(zs, torch.tensor([[-1e4, 1e4, 0.0]]), temperature=1)
        loss.backward()
        assert loss.isfinite() and zs.grad.isfinite().all()

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="one shape"):
            kd_loss(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(ValueError, match="temperature is 0"):
            kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


class TestSpatialGeometry:
    def test_kernel_by_hand(self):
        # Four positions with vectors (1, 0), (0, 2), (3, 3), (-1, 0).
        maps = torch.tensor([[1.0, 0, 3, -1], [0, 2, 3, 0]]).view(1, 2, 2, 2)
        half = math.sqrt(0.5)
        expected = torch.tensor([[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]])
        torch.testing.assert_close(spatial_kernel(maps, grid=2)[0], expected)

    def test_loss_by_hand(self):
        # One pair of positions, similar for the student (cos 1) and opposite for the teacher (cos -1): two of the
        # four kernel entries differ by 2, so the mean square is 2.
        student = torch.ones(1, 1, 1, 2).expand(1, 1, 2, 2)
        teacher = torch.tensor([[1.0, -1.0]]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
        # On a 2 × 2 grid both rows repeat: 8 of the 16 pairs differ.
        assert spatial_similarity_loss(student, teacher, grid=2).item() == pytest.approx(8 * 4 / 16)

    def test_zero_for_equal_maps(self):
        maps = torch.randn(3, 8, 7, 7)
        assert spatial_similarity_loss(maps, maps).item() == 0

    def test_channels_may_be_rotated_and_scaled(self):
        student, teacher = torch.randn(2, 6, 14, 14, dtype=torch.float64), torch.randn(2, 9, 7, 7, dtype=torch.float64)
        turned = 4.2 * torch.einsum("dc,bchw->bdhw", rotation(6), student)
        torch.testing.assert_close(
            spatial_similarity_loss(turned, teacher), spatial_similarity_loss(student, teacher), rtol=1e-9, atol=0
        )

    def test_mean_over_images_so_batches_can_be_divided(self):
        student, teacher = torch.randn(8, 6, 8, 8), torch.randn(8, 9, 4, 4)
        whole = spatial_similarity_loss(student, teacher, grid=4)
        halves = [spatial_similarity_loss(student[i::2], teacher[i::2], grid=4) for i in (0, 1)]
        torch.testing.assert_close(whole, sum(halves) / 2)

    def test_fusion_is_exact(self):
        """The averaged kernel is the kernel of the weighted concatenation of all stages' unit vectors."""
        stages = [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((4, 16), (8, 8), (16, 4))]
        weights = [0.5, 0.3, 0.2]
        average = sum(w * spatial_kernel(maps, grid=4) for w, maps in zip(weights, stages, strict=True))
        vectors = [F.normalize(F.adaptive_avg_pool2d(maps, 4).flatten(2), dim=1) for maps in stages]
        fused = torch.cat([math.sqrt(w) * v for w, v in zip(weights, vectors, strict=True)], dim=1)
        torch.testing.assert_close(fused.transpose(1, 2) @ fused, average)

    def test_one_stage_fused_is_the_plain_loss(self):
        student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 6, 6)
        fused = fused_spatial_similarity_loss([student], [teacher], weights=[3.0])
        torch.testing.assert_close(fused, spatial_similarity_loss(student, teacher))

    def test_unequal_numbers_of_stages(self):
        student = [torch.randn(2, 4, 8, 8)]
        teacher = [torch.randn(2, 5, 12, 12), torch.randn(2, 7, 6, 6)]
        assert fused_spatial_similarity_loss(student, teacher).isfinite()

    def test_a_full_mask_changes_nothing_and_scale_of_weights_neither(self):
        student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
        plain = spatial_similarity_loss(student, teacher, grid=4)
        for weight in (1.0, 0.1):
            masked = spatial_similarity_loss(student, teacher, grid=4, mask=torch.full((2, 1, 32, 32), weight))
            torch.testing.assert_close(masked, plain)

    def test_mask_hides_what_lies_outside(self):
        student, teacher = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 4, 4)
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., :2] = 1
        before = spatial_similarity_loss(student, teacher, grid=4, mask=mask)
        student[..., 2:] += 7
        torch.testing.assert_close(spatial_similarity_loss(student, teacher, grid=4, mask=mask), before)

    def test_an_empty_mask_counts_as_zero(self):
        maps = torch.randn(1, 4, 4, 4, requires_grad=True)
        loss = spatial_similarity_loss(maps, torch.randn(1, 4, 4, 4), grid=4, mask=torch.zeros(1, 1, 4, 4))
        loss.backward()
        assert loss.item() == 0 and maps.grad.isfinite().all()

    def test_gradcheck(self):
        teacher = [torch.randn(2, 3, 4, 4, dtype=torch.float64)]
        student = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s: fused_spatial_similarity_loss([s], teacher, grid=2), student)

    def test_zero_vectors_give_no_infinite_gradient(self):
        student = torch.zeros(1, 4, 4, 4, requires_grad=True)
        loss = spatial_similarity_loss(student, torch.randn(1, 4, 4, 4), grid=4)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all()

    def test_computed_in_float32_under_autocast(self):
        student, teacher = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8)
        plain = spatial_similarity_loss(student, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(spatial_similarity_loss(student, teacher), plain)

    def test_no_gradient_into_the_teacher(self):
        student, teacher = torch.randn(1, 4, 4, 4, requires_grad=True), torch.randn(1, 4, 4, 4, requires_grad=True)
        spatial_similarity_loss(student, teacher).backward()
        assert student.grad.abs().sum() > 0 and teacher.grad is None

    def test_bad_input_is_refused(self):
        maps = torch.randn(2, 4, 4, 4)
        with pytest.raises(ValueError, match="at least one stage"):
            fused_spatial_similarity_loss([], [maps])
        with pytest.raises(ValueError, match="batch sizes differ"):
            spatial_similarity_loss(maps, maps[:1])
        with pytest.raises(ValueError, match="as many weights"):
            fused_spatial_similarity_loss([maps], [maps], weights=[1, 2])
        with pytest.raises(ValueError, match=r"mask of shape \(2, 1, H, W\)"):
            spatial_similarity_loss(maps, maps, mask=torch.ones(2, 4, 4))
        with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
            spatial_kernel(torch.zeros(2, 4, 4))


class TestLabels:
    def test_order_is_mapped(self):
        assert teacher_column_order(["a", "b", "c"], ["c", "a", "b"]) == [1, 2, 0]

    @pytest.mark.parametrize("teacher", [["a", "b"], ["a", "b", "d"], ["a", "b", "c", "d"]])
    def test_other_names_are_refused(self, teacher):
        with pytest.raises(ValueError, match=r"teacher's classes .* are not the student's .* fine-tune the teacher"):
            teacher_column_order(["a", "b", "c"], teacher)
