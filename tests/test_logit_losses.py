"""Losses on logits: values by hand, zeros, the limits their docstrings state."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation.logits import dist_loss, dkd_loss, kd_loss, ofa_loss, standardize_logits


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


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

    def test_standardising_is_standardised_logits(self):
        zs, zt = torch.randn(5, 3), torch.randn(5, 3)
        expected = kd_loss(standardize_logits(zs), standardize_logits(zt), temperature=2)
        torch.testing.assert_close(kd_loss(zs, zt, temperature=2, standardize=True), expected)


class TestDecoupled:
    def test_value_by_hand(self):
        # Label 0. The student's (1/3, 1/3, 1/3) is (1/3, 2/3) and (1/2, 1/2); the teacher's (1/2, 3/8, 1/8) is
        # (1/2, 1/2) and (3/4, 1/4).
        zs, zt, label = torch.zeros(1, 3), logits_of([1 / 2, 3 / 8, 1 / 8]), torch.tensor([0])
        target = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
        rest = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
        value = dkd_loss(zs, zt, label, alpha=2, beta=5, temperature=1).item()
        assert value == pytest.approx(2 * target + 5 * rest, abs=1e-6)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_its_parts_add_up_to_hintons_loss(self, temperature):
        """KL = KL of (label, rest) + (1 - p_t of the label) · KL among the rest: eq. 6 of the paper."""
        zs, zt = torch.randn(2, 1, 5, dtype=torch.float64)
        label = torch.tensor([3])
        missed = 1 - (zt / temperature).softmax(1)[0, 3].item()
        decoupled = dkd_loss(zs, zt, label, alpha=1, beta=missed, temperature=temperature)
        torch.testing.assert_close(decoupled, kd_loss(zs, zt, temperature=temperature))

    def test_mean_over_images_each_with_its_own_label(self):
        zs, zt, labels = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 2, 3])
        each = [dkd_loss(zs[i : i + 1], zt[i : i + 1], labels[i : i + 1], beta=2) for i in range(3)]
        torch.testing.assert_close(dkd_loss(zs, zt, labels, beta=2), sum(each) / 3)

    def test_the_rest_keeps_its_weight_under_a_sure_teacher(self):
        # p_t(label) is 1 to the last digit of float32, so Hinton's loss cannot see the order of the others.
        zs, zt = torch.tensor([[200.0, 0, 1]]), torch.tensor([[200.0, 1, 0]])
        assert kd_loss(zs, zt, temperature=1).item() == 0
        assert dkd_loss(zs, zt, torch.tensor([0]), temperature=1).item() == pytest.approx(0.4621, abs=1e-4)

    def test_two_classes_have_no_rest(self):
        zs, zt, labels = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
        torch.testing.assert_close(dkd_loss(zs, zt, labels, beta=9), kd_loss(zs, zt))

    def test_bad_input_is_refused(self):
        z = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="one shape"):
            dkd_loss(z, torch.zeros(2, 4), torch.tensor([0, 1]))
        for labels in (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), torch.tensor([0])):
            with pytest.raises(ValueError, match=r"class indices of shape \(2,\).*use kd_loss"):
                dkd_loss(z, z, labels)
        with pytest.raises(ValueError, match=r"got torch.int32 .* call .long\(\)"):
            dkd_loss(z, z, torch.tensor([0, 1], dtype=torch.int32))
        for wrong in (3, -1, -100):
            with pytest.raises(ValueError, match=f"labels go from .*{wrong}.* 3 classes, 0 to 2"):
                dkd_loss(z, z, torch.tensor([0, wrong]))
        with pytest.raises(ValueError, match="alpha is -1"):
            dkd_loss(z, z, torch.tensor([0, 1]), alpha=-1)
        with pytest.raises(ValueError, match="at least two classes"):
            dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]))


class TestRelationOfPredictions:
    def test_term_over_classes_by_hand(self):
        # Centred (5, -1, -4) / 30 and its reverse: ρ = (-20 + 1 - 20) / 42 = -13/14.
        zs, zt = logits_of(*[[0.5, 0.3, 0.2]] * 2), logits_of(*[[0.2, 0.3, 0.5]] * 2)
        assert dist_loss(zs, zt, beta=3, gamma=0).item() == pytest.approx(3 * 27 / 14, abs=1e-5)

    def test_term_over_the_batch_by_hand(self):
        # The student's first class falls from .8 to .6 while the teacher's rises: ρ = -1 over the batch; each row
        # alone agrees, ρ = 1.
        zs, zt = logits_of([0.8, 0.2], [0.6, 0.4]), logits_of([0.7, 0.3], [0.9, 0.1])
        assert dist_loss(zs, zt, beta=1, gamma=0).item() == pytest.approx(0, abs=1e-5)
        assert dist_loss(zs, zt, beta=1, gamma=2).item() == pytest.approx(4, abs=1e-5)

    def test_zero_for_an_affine_relation(self):
        pt = torch.rand(6, 4, dtype=torch.float64).softmax(1)
        ps = 0.5 * pt + 0.5 / 4  # still sums to 1
        assert dist_loss(ps.log(), pt.log()).item() == pytest.approx(0, abs=1e-5)

    def test_temperature_divides_the_logits_and_nothing_else(self):
        zs, zt = torch.randn(6, 3), torch.randn(6, 3)
        torch.testing.assert_close(dist_loss(zs, zt, temperature=3), dist_loss(zs / 3, zt / 3))

    def test_one_saturated_class_has_no_correlation(self):
        zt = torch.tensor([[100.0, 0, 0]]).repeat(4, 1)
        zs = torch.randn(4, 3, requires_grad=True)
        loss = dist_loss(zs, zt, beta=0)
        loss.backward()
        assert loss.item() == pytest.approx(1) and zs.grad.abs().max() == 0

    def test_three_classes_hide_confidence_in_the_rows(self):
        """The limit the docstring states: .99 against .36 on the same class is next to nothing."""
        zs, zt = logits_of(*[[0.99, 0.005, 0.005]] * 2), logits_of(*[[0.36, 0.32, 0.32]] * 2)
        assert dist_loss(zs, zt, gamma=0).item() < 1e-5

    def test_a_zero_head_gets_a_bounded_gradient(self):
        zs = torch.zeros(8, 3, requires_grad=True)
        dist_loss(zs, torch.randn(8, 3)).backward()
        assert zs.grad.abs().max() < 1e4

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="at least 2 images, got 1"):
            dist_loss(torch.zeros(1, 3), torch.zeros(1, 3))
        with pytest.raises(ValueError, match="gamma is -1"):
            dist_loss(torch.zeros(2, 3), torch.zeros(2, 3), gamma=-1)


class TestOneForAll:
    def test_value_by_hand(self):
        # Teacher (3/4, 1/4), label 0, γ 2: weights 1.75² - 1 and .25²; the student is even, so each costs ln 2.
        zt = logits_of([0.75, 0.25])
        value = ofa_loss(torch.zeros(1, 2), zt, torch.tensor([0]), gamma=2).item()
        assert value == pytest.approx((1.75**2 - 1 + 0.25**2) * math.log(2), abs=1e-6)

    def test_gamma_one_is_cross_entropy_with_the_teachers_probabilities(self):
        zs, zt, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
        expected = F.cross_entropy(zs, zt.softmax(1))
        torch.testing.assert_close(ofa_loss(zs, zt, labels, gamma=1), expected)

    def test_published_form(self):
        zs, zt, labels = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        one_hot = F.one_hot(labels, 3)
        weight = (zt.softmax(1) + one_hot).pow(1.4) - one_hot
        expected = (-weight * zs.softmax(1).log()).sum(1).mean()
        torch.testing.assert_close(ofa_loss(zs, zt, labels, gamma=1.4), expected)

    def test_not_zero_for_equal_logits(self):
        z = torch.randn(4, 3)
        assert ofa_loss(z, z, torch.tensor([0, 1, 2, 0])).item() > 0.1

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="gamma is 0"):
            ofa_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0]), gamma=0)
        with pytest.raises(ValueError, match="class indices"):
            ofa_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3))


class TestStandardizedLogits:
    def test_mean_zero_and_deviation_one(self):
        z = standardize_logits(5 + 7 * torch.randn(4, 3))
        torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std(1), torch.ones(4))

    def test_confidence_is_lost(self):
        one, other = standardize_logits(torch.tensor([[10.0, 0, 0], [0.01, 0, 0]]))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)

    def test_constant_logits_become_zero(self):
        assert standardize_logits(torch.full((1, 3), 4.0)).tolist() == [[0, 0, 0]]
