"""Spatial geometry: values by hand, invariances, exact fusion, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation.geometry import (
    KERNEL_TEMPERATURE,
    fused_embedding,
    fused_spatial_kernel,
    fused_spatial_similarity_loss,
    kernel_difference,
    spatial_kernel,
    spatial_similarity_loss,
)
from hf_kdmri.distillation.kernels import alignment
from hf_kdmri.distillation.lesions import lesion_weights


def rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]


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
        for weight in (1.0, 0.1, 1e-8, 1e8):
            masked = spatial_similarity_loss(student, teacher, grid=4, mask=torch.full((2, 1, 32, 32), weight))
            torch.testing.assert_close(masked, plain)

    def test_mask_hides_what_lies_outside(self):
        student, teacher = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 4, 4)
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., :2] = 1
        before = spatial_similarity_loss(student, teacher, grid=4, mask=mask)
        student[..., 2:] += 7
        torch.testing.assert_close(spatial_similarity_loss(student, teacher, grid=4, mask=mask), before)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(grid=0), "grid is 0; it must be a whole number"),
            (dict(grid=3.5), "grid is 3.5"),
            (dict(grid=(2, 3)), r"grid is \(2, 3\)"),
            (dict(mask=torch.ones(2, 8, 8)), r"one for each image, got \(2, 8, 8\); mask\[:, None\]"),
            (dict(mask=-torch.ones(2, 1, 8, 8)), "weights down to -1; weights must be at least 0"),
            (dict(weights=[1, 2, 3]), "2 stages need as many weights, got 3.*leave the weights out"),
            (dict(weights=[1, math.nan]), "give finite numbers of at least 0"),
            (dict(weights=[math.inf, 1]), "give finite numbers of at least 0"),
        ],
    )
    def test_what_makes_no_loss_is_refused(self, options, message):
        stages = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)]
        with pytest.raises(ValueError, match=message):
            fused_spatial_similarity_loss(stages, stages, **options)

    @pytest.mark.parametrize("difference", ["squared", "smooth_l1", "kl", "cka"])
    def test_a_teachers_kernel_made_in_inference_mode(self, difference):
        student = torch.randn(2, 4, 8, 8, requires_grad=True)
        with torch.inference_mode():
            kernel_t = fused_spatial_kernel([torch.randn(2, 5, 4, 4)], grid=3)
        kernel_difference(fused_spatial_kernel([student], grid=3), kernel_t, difference=difference).backward()
        assert student.grad is not None and student.grad.abs().sum() > 0

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


class TestDifferences:
    """What may be taken between two kernels instead of the square."""

    @pytest.mark.parametrize("difference", ["squared", "smooth_l1", "kl", "cka"])
    def test_zero_for_equal_maps_and_blind_to_rotated_channels(self, difference):
        student, teacher = torch.randn(2, 6, 4, 4, dtype=torch.float64), torch.randn(2, 9, 4, 4, dtype=torch.float64)
        turned = torch.einsum("dc,bchw->bdhw", rotation(6), student)
        same = spatial_similarity_loss(turned, 3 * student, grid=4, difference=difference).item()
        assert same == pytest.approx(0, abs=1e-10)
        plain, rotated = (
            spatial_similarity_loss(maps, teacher, grid=4, difference=difference) for maps in (student, turned)
        )
        assert plain > 1e-3
        torch.testing.assert_close(rotated, plain)

    def test_smooth_l1_by_hand(self):
        # The pair of test_loss_by_hand: half of the entries differ by 2, and Huber's function is 1.5 there.
        student = torch.ones(1, 1, 2, 2)
        teacher = torch.tensor([[1.0, -1.0]]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
        assert spatial_similarity_loss(student, teacher, grid=2, difference="smooth_l1").item() == pytest.approx(0.75)

    @pytest.mark.parametrize("keep", [9, 6])
    def test_kl_is_the_divergence_of_rows_without_their_diagonal(self, keep):
        """With a mask, of the rows and columns that it keeps."""
        student, teacher = torch.randn(2, 1, 5, 3, 3, dtype=torch.float64)
        mask = torch.zeros(1, 1, 3, 3)
        mask.view(-1)[:keep] = 0.25
        expected = []
        for row in range(keep):
            columns = [column for column in range(keep) if column != row]
            log_ps, log_pt = (
                (spatial_kernel(maps, grid=3)[0, row, columns] / KERNEL_TEMPERATURE).log_softmax(0)
                for maps in (student, teacher)
            )
            expected.append((log_pt.exp() * (log_pt - log_ps)).sum())
        value = spatial_similarity_loss(student, teacher, grid=3, mask=mask, difference="kl")
        torch.testing.assert_close(value, torch.stack(expected).mean())

    def test_cka_is_the_mean_of_the_images(self):
        student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 6, 4, 4)
        expected = 1 - alignment(spatial_kernel(student, grid=4), spatial_kernel(teacher, grid=4)).mean()
        torch.testing.assert_close(spatial_similarity_loss(student, teacher, grid=4, difference="cka"), expected)

    @pytest.mark.parametrize("difference", ["smooth_l1", "kl", "cka"])
    def test_gradcheck(self, difference):
        teacher = torch.randn(1, 3, 2, 2, dtype=torch.float64)
        student = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda s: spatial_similarity_loss(s, teacher, grid=2, difference=difference), student
        )

    @pytest.mark.parametrize("difference", ["smooth_l1", "kl", "cka"])
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_constant_maps_and_empty_masks_stay_finite(self, difference, value):
        student = torch.full((1, 4, 4, 4), value, requires_grad=True)
        masks = [None] if difference == "cka" else [None, torch.zeros(1, 1, 4, 4)]
        for mask in masks:
            loss = spatial_similarity_loss(student, torch.randn(1, 4, 4, 4), grid=4, mask=mask, difference=difference)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite() and gradient.isfinite().all() and (mask is None or loss == 0)

    def test_bad_input_is_refused(self):
        maps = torch.randn(1, 2, 4, 4)
        with pytest.raises(ValueError, match="difference is 'mse'; it must be one of squared, smooth_l1, kl, cka"):
            spatial_similarity_loss(maps, maps, difference="mse")
        with pytest.raises(ValueError, match="grid of at least 2, got 1"):
            spatial_similarity_loss(maps, maps, grid=1, difference="kl")
        with pytest.raises(ValueError, match="takes no mask"):
            spatial_similarity_loss(maps, maps, mask=torch.ones(1, 1, 4, 4), difference="cka")


class TestFusedEmbedding:
    def test_value_by_hand(self):
        # Two positions, (3, 0) and (0, 5): their unit vectors average to (.5, .5). One channel: 1. Weights 1/4, 3/4.
        first = torch.tensor([[3.0, 0], [0, 5]]).view(1, 2, 1, 2)
        vector = fused_embedding([first, torch.full((1, 1, 2, 2), 7.0)], weights=[1, 3])
        torch.testing.assert_close(vector, torch.tensor([[0.25, 0.25, math.sqrt(0.75)]]))

    def test_products_are_mean_cosines_between_positions(self):
        """The sample side of the fused kernel: same weights, positions of two images instead of one."""
        stages = [torch.randn(3, c, s, s, dtype=torch.float64) for c, s in ((4, 8), (6, 4))]
        weights = [0.3, 0.7]
        expected = 0
        for weight, maps in zip(weights, stages, strict=True):
            units = F.normalize(maps.flatten(2), dim=1)
            expected = expected + weight * torch.einsum("acp,bcq->abpq", units, units).mean((2, 3))
        vectors = fused_embedding(stages, weights=weights)
        torch.testing.assert_close(vectors @ vectors.T, expected)

    def test_shape_scale_and_length(self):
        stages = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
        vectors = fused_embedding(stages)
        assert vectors.shape == (2, 10) and (vectors.norm(dim=1) <= 1).all()
        torch.testing.assert_close(fused_embedding([9 * maps for maps in stages]), vectors)

    def test_gradcheck_and_zero_maps(self):
        stages = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        assert torch.autograd.gradcheck(lambda a, b: fused_embedding([a, b]), stages)
        zero = torch.zeros(2, 3, 2, 2, requires_grad=True)
        fused_embedding([zero]).sum().backward()
        assert zero.grad.isfinite().all()

    def test_bad_input_is_refused(self):
        maps = torch.randn(2, 4, 4, 4)
        for stages, message in (
            ([], "at least one stage map"),
            ([maps, maps[:1]], "batch sizes of the stage maps differ"),
            ([maps[0]], "tokens must be put back"),
            (maps, r"a list of stage maps, got one tensor \(2, 4, 4, 4\); write \[maps\]"),
            ([maps[:0]], "the batch is empty"),
        ):
            with pytest.raises(ValueError, match=message):
                fused_embedding(stages)
        with pytest.raises(ValueError, match="as many weights"):
            fused_embedding([maps], weights=[1, 2])


class TestLesionWeights:
    def disc(self, radius: float = 12, size: int = 64) -> torch.Tensor:
        axis = torch.arange(size) - size // 2
        return ((axis[:, None] ** 2 + axis**2) <= radius**2).view(1, 1, size, size)

    @pytest.mark.parametrize("radius", [8, 12, 20])
    def test_each_region_has_its_share_whatever_the_size(self, radius):
        mask = self.disc(radius)
        weights = lesion_weights(mask, inside=3, border=2, outside=5, border_width=2)
        values, counts = weights.unique(return_counts=True)
        assert len(values) == 3
        shares = sorted((values * counts / mask.numel()).tolist())
        assert shares == pytest.approx([0.2, 0.3, 0.5], abs=1e-4)
        assert weights.mean().item() == pytest.approx(1, abs=1e-4)

    def test_border_straddles_the_edge(self):
        line = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]).view(1, 1, 1, -1)
        border = lesion_weights(line, inside=0, outside=1e-6, border_width=2).flatten() > 0.1
        assert border.nonzero().flatten().tolist() == [2, 3, 4, 5, 8, 9, 10, 11]

    def test_a_missing_region_leaves_its_share(self):
        empty = torch.zeros(1, 1, 16, 16)
        torch.testing.assert_close(lesion_weights(empty), torch.ones(1, 1, 16, 16))
        thin = lesion_weights(self.disc(2), border_width=4)
        assert len(thin.unique()) == 2 and thin.mean().item() == pytest.approx(1, abs=1e-4)

    def test_images_do_not_mix(self):
        masks = torch.cat([self.disc(6), self.disc(15), torch.zeros(1, 1, 64, 64)])
        each = torch.cat([lesion_weights(mask[None]) for mask in masks])
        torch.testing.assert_close(lesion_weights(masks), each)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
    def test_any_kind_of_mask(self, dtype):
        torch.testing.assert_close(lesion_weights(self.disc().to(dtype)), lesion_weights(self.disc()))

    def test_the_loss_then_looks_at_the_lesion(self):
        """A change inside a small lesion, 1 % of the area, moves the weighted loss far more than the plain one."""
        teacher = torch.randn(1, 6, 64, 64)
        mask = self.disc(4)
        student = torch.where(mask, torch.randn(1, 6, 64, 64), teacher)
        plain = spatial_similarity_loss(student, teacher, grid=16)
        weights = lesion_weights(mask, border_width=1)
        assert spatial_similarity_loss(student, teacher, grid=16, mask=weights) > 5 * plain

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"\(B, 1, H, W\), got \(4, 4\)"):
            lesion_weights(torch.zeros(4, 4))
        with pytest.raises(ValueError, match="outside above 0"):
            lesion_weights(torch.zeros(1, 1, 4, 4), outside=0)
        with pytest.raises(ValueError, match="border_width is 0"):
            lesion_weights(torch.zeros(1, 1, 4, 4), border_width=0)
