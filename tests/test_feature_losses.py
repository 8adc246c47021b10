"""Losses that match feature maps point by point: values by hand, zeros, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation.feature_maps import attention_transfer_loss, hcl_loss, hint_loss


def checkerboard(size: int) -> torch.Tensor:
    rows = torch.arange(size)
    return (1 - 2 * ((rows[:, None] + rows) % 2)).float().view(1, 1, size, size)


class TestHint:
    def test_value_by_hand(self):
        student = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 2, 2)
        teacher = torch.tensor([1.0, 4, 3, 0]).view(1, 1, 2, 2)
        assert hint_loss(student, teacher).item() == pytest.approx((4 + 16) / 4)

    def test_does_not_grow_with_the_map(self):
        student, teacher = torch.randn(2, 2, 3, 4, 4)
        larger = hint_loss(student.repeat(1, 2, 3, 3), teacher.repeat(1, 2, 3, 3))
        torch.testing.assert_close(larger, hint_loss(student, teacher))


class TestHierarchicalContext:
    @pytest.mark.parametrize(("size", "total"), [(8, 1.875), (4, 1.75), (2, 1.5), (1, 1.0)])
    def test_value_by_hand(self, size, total):
        teacher = torch.randn(1, 1, size, size)
        # A constant offset survives all pooling: every level has MSE 1, and so has their weighted mean.
        assert hcl_loss(teacher + 1, teacher).item() == pytest.approx(1, abs=1e-5)
        # A checkerboard is gone after pooling, so only the full size counts, with weight 1 of the total.
        assert hcl_loss(teacher + checkerboard(size), teacher).item() == pytest.approx(1 / total, abs=1e-5)

    def test_levels_and_weights(self):
        student, teacher = torch.randn(2, 3, 5, 7, 7)
        mse = [F.mse_loss(F.adaptive_avg_pool2d(student, g), F.adaptive_avg_pool2d(teacher, g)) for g in (7, 4, 2, 1)]
        expected = (mse[0] + mse[1] / 2 + mse[2] / 4 + mse[3] / 8) / 1.875
        torch.testing.assert_close(hcl_loss(student, teacher), expected)


class TestAttentionTransfer:
    def test_value_by_hand(self):
        # All attention in one corner against all in the other: two of four positions differ by 1.
        student, teacher = torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 2, 2)
        student[:, 1, 0, 0], teacher[:, 2, 1, 1] = -4, 9
        assert attention_transfer_loss(student, teacher).item() == pytest.approx(2 / 4)

    def test_blind_to_channels_sign_and_scale(self):
        student = torch.randn(2, 6, 4, 4)
        teacher = -3 * student[:, torch.randperm(6)]
        assert attention_transfer_loss(student, teacher).item() == pytest.approx(0, abs=1e-10)

    @pytest.mark.parametrize("scale", [1e-25, 1e-4, 1e12])
    def test_features_of_any_size_keep_their_digits_and_their_gradient(self, scale):
        student, teacher = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
        results = []
        for factor in (1.0, scale):
            leaf = (student * factor).requires_grad_()
            loss = attention_transfer_loss(leaf, teacher)
            (gradient,) = torch.autograd.grad(loss, leaf)
            results.append((loss.detach(), gradient * factor))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-8)

    @pytest.mark.parametrize(("size_s", "size_t"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 4), (4, 8))])
    def test_unlike_sizes_meet_on_the_coarser(self, size_s, size_t):
        student, teacher = torch.randn(2, 3, *size_s), torch.randn(2, 5, *size_t)
        pooled = attention_transfer_loss(F.adaptive_avg_pool2d(student, 4), F.adaptive_avg_pool2d(teacher, 4))
        torch.testing.assert_close(attention_transfer_loss(student, teacher), pooled)


@pytest.mark.parametrize("loss", [hint_loss, hcl_loss])
def test_unlike_shapes_are_refused(loss):
    for teacher in (torch.zeros(2, 4, 4, 4), torch.zeros(2, 3, 2, 2), torch.zeros(1, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\).*projector"):
            loss(torch.zeros(2, 3, 4, 4), teacher)
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))


def test_attention_of_unlike_batches_is_refused():
    with pytest.raises(ValueError, match="one batch size"):
        attention_transfer_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
