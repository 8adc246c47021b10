"""Learnable projectors: values by hand, rasters, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation.projectors import (
    GroupwiseLinearProjector,
    HintProjector,
    MaskedGenerationProjector,
    OrthogonalProjector,
    PartialCrossAttentionProjector,
    attention_tokens,
    orthogonal_projection_loss,
    partial_cross_attention_loss,
)
from hf_kdmri.distillation.stage_maps import resize_to_raster

PROJECTORS = {
    "hint": lambda c_s, c_t: HintProjector(c_s, c_t),
    "groupwise": lambda c_s, c_t: GroupwiseLinearProjector(c_s, c_t, groups_per_side=2),
    "attention": PartialCrossAttentionProjector,
    "generation": MaskedGenerationProjector,
    "orthogonal": OrthogonalProjector,
}
# Stage maps (C, H, W): a CNN's that is finer and coarser than its teacher's, and a transformer's of one raster.
PAIRS = {
    "finer": ((6, 12, 12), (10, 6, 6)),
    "coarser": ((6, 4, 4), (10, 7, 7)),
    "oblong": ((6, 6, 4), (10, 4, 6)),
    "vit": ((16, 5, 5), (16, 5, 5)),
}


def loss_of(pair: tuple) -> torch.Tensor:
    if isinstance(pair[0], tuple):
        return partial_cross_attention_loss(*pair)
    return F.mse_loss(pair[0].float(), pair[1].float())


def tokens(batch: int = 2, positions: int = 3, width: int = 4, **kwargs) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(batch, positions, width, dtype=torch.float64, **kwargs) for _ in range(3))


@pytest.mark.parametrize("kind", PROJECTORS)
class TestEveryProjector:
    @pytest.mark.parametrize("pair", PAIRS)
    def test_pairs_have_the_teachers_shape_and_every_parameter_a_gradient(self, kind, pair):
        (shape_s, shape_t) = PAIRS[pair]
        projector = PROJECTORS[kind](shape_s[0], shape_t[0])
        map_s = torch.randn(3, *shape_s, requires_grad=True)
        map_t = torch.randn(3, *shape_t, requires_grad=True)
        projected = projector(map_s, map_t)
        if kind == "attention":
            expected = (3, shape_t[1] * shape_t[2], shape_t[0])
            assert {tuple(part.shape) for side in projected for part in side} == {expected}
        else:
            expected = (3, shape_t[0]) if kind == "orthogonal" else map_t.shape
            assert projected[0].shape == projected[1].shape == expected
        loss_of(projected).backward()
        assert map_t.grad is None and map_s.grad.abs().sum() > 0
        for name, parameter in projector.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_images_do_not_mix(self, kind):
        projector = PROJECTORS[kind](6, 10).eval()
        map_s, map_t, order = torch.randn(4, 6, 8, 8), torch.randn(4, 10, 4, 4), torch.tensor([2, 0, 3, 1])
        whole, permuted = projector(map_s, map_t), projector(map_s[order], map_t[order])
        for side, side_permuted in zip(whole, permuted, strict=True):
            parts = zip(side, side_permuted, strict=True) if kind == "attention" else [(side, side_permuted)]
            for part, part_permuted in parts:
                torch.testing.assert_close(part[order], part_permuted)

    def test_bfloat16_autocast_is_finite(self, kind):
        projector = PROJECTORS[kind](6, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(projector(torch.randn(2, 6, 8, 8), torch.randn(2, 10, 4, 4).bfloat16()))
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in projector.parameters())

    def test_teacher_under_inference_mode(self, kind):
        with torch.inference_mode():
            map_t = torch.randn(2, 10, 4, 4)
        projector = PROJECTORS[kind](6, 10)
        loss_of(projector(torch.randn(2, 6, 8, 8), map_t)).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())

    def test_gradcheck(self, kind):
        projector = PROJECTORS[kind](2, 3).double().eval()
        map_t = torch.randn(2, 3, 2, 2, dtype=torch.float64)

        def value(map_s):
            pair = projector(map_s, map_t)
            if kind == "attention":
                return partial_cross_attention_loss(*pair, swap_probability=0)
            return F.mse_loss(*pair)

        assert torch.autograd.gradcheck(value, torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True))

    @pytest.mark.parametrize(
        ("shape_s", "shape_t", "message"),
        [
            ((2, 5, 4, 4), (2, 10, 4, 4), r"student map \(B, 6, H, W\), got \(2, 5, 4, 4\)"),
            ((2, 6, 4, 4), (2, 9, 4, 4), r"teacher map \(B, 10, H, W\), got \(2, 9, 4, 4\)"),
            ((2, 6, 16), (2, 10, 4, 4), "student map"),
            ((2, 6, 4, 4), (3, 10, 4, 4), "student 2, teacher 3"),
        ],
    )
    def test_maps_that_do_not_fit(self, kind, shape_s, shape_t, message):
        with pytest.raises(ValueError, match=message):
            PROJECTORS[kind](6, 10)(torch.zeros(shape_s), torch.zeros(shape_t))

    def test_no_channels(self, kind):
        with pytest.raises(ValueError, match="teacher channels are"):
            PROJECTORS[kind](6, 0)


class TestRaster:
    def test_coarser_is_the_mean_of_each_cell(self):
        maps = torch.randn(2, 3, 6, 4)
        expected = maps.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean((3, 5))
        torch.testing.assert_close(resize_to_raster(maps, (3, 2)), expected)

    def test_finer_keeps_a_constant_and_stays_between_its_neighbours(self):
        maps = torch.tensor([[[[0.0, 1.0]]]])
        finer = resize_to_raster(maps, (2, 4))
        torch.testing.assert_close(finer[0, 0, 1], torch.tensor([0.0, 0.25, 0.75, 1.0]))

    def test_same_size_is_the_map_itself(self):
        maps = torch.randn(1, 2, 3, 3)
        assert resize_to_raster(maps, (3, 3)) is maps


class TestHint:
    def test_identity_weights_give_the_pooled_map(self):
        hint = HintProjector(3, 3)
        torch.nn.init.dirac_(hint.projection.weight)
        torch.nn.init.zeros_(hint.projection.bias)
        map_s = torch.randn(2, 3, 8, 8)
        projected, _ = hint(map_s, torch.zeros(2, 3, 4, 4))
        torch.testing.assert_close(projected, F.avg_pool2d(map_s, 2))

    def test_is_a_matrix_at_each_position(self):
        hint, map_s = HintProjector(3, 5), torch.randn(2, 3, 4, 4)
        projected, _ = hint(map_s, torch.zeros(2, 5, 4, 4))
        matrix, offset = hint.projection.weight[:, :, 0, 0], hint.projection.bias
        torch.testing.assert_close(projected[1, :, 2, 3], matrix @ map_s[1, :, 2, 3] + offset)


class TestMaskedGeneration:
    @staticmethod
    def repeating(channels: int, **options) -> MaskedGenerationProjector:
        """Generates what it is given, where that is not negative."""
        projector = MaskedGenerationProjector(channels, channels, **options)
        for layer in projector.generate:
            if not isinstance(layer, torch.nn.Conv2d):
                continue
            assert layer.bias is not None
            torch.nn.init.dirac_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        return projector

    def test_whole_in_evaluation(self):
        map_s = torch.rand(2, 3, 8, 8)
        generated, _ = self.repeating(3).eval()(map_s, torch.zeros(2, 3, 4, 4))
        torch.testing.assert_close(generated, F.avg_pool2d(map_s, 2))

    @pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75])
    def test_positions_are_hidden_in_all_channels(self, ratio):
        map_s = 1 + torch.rand(4, 3, 32, 32)
        generated, _ = self.repeating(3, mask_ratio=ratio)(map_s, map_s)
        hidden = generated[:, 0] == 0
        assert hidden.float().mean().item() == pytest.approx(ratio, abs=0.05)
        torch.testing.assert_close(generated, map_s * ~hidden[:, None])

    def test_channels_are_hidden_whole(self):
        map_s = 1 + torch.rand(8, 64, 3, 3)
        generated, _ = self.repeating(64, mask_ratio=0.15, over="channels")(map_s, map_s)
        hidden = generated[:, :, 0, 0] == 0
        assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.06)
        torch.testing.assert_close(generated, map_s * ~hidden[:, :, None, None])

    def test_bad_options(self):
        for options, message in (({"mask_ratio": 1.0}, "mask_ratio is 1.0"), ({"over": "images"}, "over is 'images'")):
            with pytest.raises(ValueError, match=message):
                MaskedGenerationProjector(3, 3, **options)


class TestOrthogonal:
    @pytest.mark.parametrize(("channels_s", "channels_t"), [(5, 9), (6, 6), (9, 5)])
    def test_stays_orthogonal_while_it_learns(self, channels_s, channels_t):
        projector = OrthogonalProjector(channels_s, channels_t)
        optimizer = torch.optim.SGD(projector.parameters(), lr=5.0)
        before = projector.projection.weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            pair = projector(torch.randn(4, channels_s, 2, 2), torch.randn(4, channels_t, 2, 2))
            orthogonal_projection_loss(*pair).backward()
            optimizer.step()
        weight = projector.projection.weight.detach()
        assert (weight - before).abs().max() > 0.01
        product = weight.T @ weight if channels_s <= channels_t else weight @ weight.T
        torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)

    def test_distances_between_images_are_kept(self):
        map_s = torch.randn(6, 5, 4, 4)
        projected, _ = OrthogonalProjector(5, 9)(map_s, torch.randn(6, 9, 2, 2))
        pooled = map_s.mean((2, 3))
        torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(pooled, pooled), atol=1e-5, rtol=1e-5)

    def test_the_teachers_features_are_standardised(self):
        _, target = OrthogonalProjector(5, 64)(torch.randn(3, 5, 2, 2), 7 + 3 * torch.randn(3, 64, 4, 4))
        torch.testing.assert_close(target.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(target.var(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)

    def test_saved_and_loaded_it_is_the_same(self):
        first, second = OrthogonalProjector(5, 9), OrthogonalProjector(5, 9)
        second.load_state_dict(first.state_dict())
        maps = torch.randn(2, 5, 2, 2), torch.randn(2, 9, 2, 2)
        torch.testing.assert_close(first(*maps)[0], second(*maps)[0])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="one number cannot be standardised"):
            OrthogonalProjector(3, 1)
        for shapes in (((2, 3), (2, 4)), ((2, 3, 1), (2, 3, 1)), ((0, 3), (0, 3))):
            with pytest.raises(ValueError, match="OrthogonalProjector makes them"):
                orthogonal_projection_loss(*map(torch.zeros, shapes))


class TestGroupwiseLinear:
    @pytest.mark.parametrize("side", [4, 6, 14])
    def test_each_position_has_its_groups_matrix(self, side):
        projector = GroupwiseLinearProjector(3, 5).eval()
        map_s = torch.randn(2, 3, side, side)
        projected, _ = projector(map_s, torch.zeros(2, 5, side, side))
        groups = [len(part) for part in torch.arange(side).tensor_split(4)]
        group_of = torch.repeat_interleave(torch.arange(4), torch.tensor(groups))
        for row, column in [(0, 0), (0, side - 1), (side // 2, 1), (side - 1, side - 1)]:
            layer = projector.projections[int(group_of[row] * 4 + group_of[column])]
            torch.testing.assert_close(projected[:, :, row, column], layer(map_s[:, :, row, column]))

    def test_sixteen_layers_as_in_the_paper(self):
        assert len(GroupwiseLinearProjector(2, 3).projections) == 16

    def test_one_group_is_the_hint(self):
        projector, hint = GroupwiseLinearProjector(3, 5, groups_per_side=1).eval(), HintProjector(3, 5)
        with torch.no_grad():
            hint.projection.weight.copy_(projector.projections[0].weight[:, :, None, None])
            hint.projection.bias.copy_(projector.projections[0].bias)
        maps = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
        torch.testing.assert_close(projector(*maps)[0], hint(*maps)[0])

    def test_dropout_only_while_training(self):
        projector, maps = (
            GroupwiseLinearProjector(8, 5, dropout=0.5),
            (torch.randn(1, 8, 4, 4), torch.zeros(1, 5, 4, 4)),
        )
        assert not torch.equal(projector(*maps)[0], projector(*maps)[0])
        projector.eval()
        assert torch.equal(projector(*maps)[0], projector(*maps)[0])

    def test_more_groups_than_positions(self):
        with pytest.raises(ValueError, match=r"3×7 cannot be cut into 4×4 groups.*at most 3"):
            GroupwiseLinearProjector(2, 3)(torch.zeros(1, 2, 7, 7), torch.zeros(1, 3, 3, 7))

    @pytest.mark.parametrize("options", [{"groups_per_side": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
    def test_options_out_of_range(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            GroupwiseLinearProjector(2, 3, **options)


class TestAttentionTokens:
    def test_products_are_cosines(self):
        query, key, value = attention_tokens(torch.randn(2, 5, 3, 4, dtype=torch.float64), temperature=0.5)
        cosines = value @ value.mT / math.sqrt(5)
        torch.testing.assert_close(torch.diagonal(cosines, dim1=1, dim2=2), torch.ones(2, 12, dtype=torch.float64))
        torch.testing.assert_close(query @ key.mT / math.sqrt(5), cosines / 0.5)

    def test_scale_offset_and_the_order_of_channels_do_not_matter_to_attention(self):
        maps, order = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
        query, _, _ = attention_tokens(maps)
        query_changed, _, _ = attention_tokens(7 * maps[:, order] + torch.randn(1, 5, 1, 1))
        torch.testing.assert_close(query_changed, query[..., order])

    def test_equal_positions_are_finite(self):
        assert all(part.isfinite().all() for part in attention_tokens(torch.ones(1, 4, 2, 2)))

    def test_one_position(self):
        with pytest.raises(ValueError, match="at least two positions"):
            attention_tokens(torch.zeros(1, 4, 1, 1))

    def test_temperature_of_zero(self):
        with pytest.raises(ValueError, match="temperature is 0"):
            attention_tokens(torch.zeros(1, 4, 2, 2), temperature=0)


class TestPartialCrossAttentionLoss:
    def test_value_by_hand(self):
        # Two positions, d = 1. The student's queries are 0, so its attention is the mean of its values (1, 3): 2 and 2.
        # The teacher's values are 0: so is its attention. Products of values: (1, 3; 3, 9) against 0.
        zero, value = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [3.0]]])
        loss = partial_cross_attention_loss((zero, value, value), (zero, zero, zero), swap_probability=0)
        assert loss.item() == pytest.approx(4 + (1 + 9 + 9 + 81) / 4)

    @pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
    def test_zero_for_equal_tokens(self, probability):
        qkv = tokens()
        assert partial_cross_attention_loss(qkv, qkv, swap_probability=probability).item() == pytest.approx(
            0, abs=1e-12
        )

    def test_all_swapped_leaves_the_products_of_values(self):
        qkv_s, qkv_t = tokens(), tokens()
        expected = (qkv_s[2] @ qkv_s[2].mT / 2 - qkv_t[2] @ qkv_t[2].mT / 2).square().mean()
        torch.testing.assert_close(partial_cross_attention_loss(qkv_s, qkv_t, swap_probability=1), expected)

    def test_half_of_the_elements_are_swapped(self):
        # Equal teacher values 1 and queries 0: attention is the mean over positions of values, 0 or 1 by the draw.
        zero, one = torch.zeros(1, 1, 20000), torch.ones(1, 1, 20000)
        loss = partial_cross_attention_loss((zero, zero, zero), (zero, zero, one))
        products = (20000 / math.sqrt(20000)) ** 2
        assert loss.item() - products == pytest.approx(0.5, abs=0.03)

    def test_gradient_reaches_the_student_only(self):
        qkv_s, qkv_t = tokens(requires_grad=True), tokens(requires_grad=True)
        partial_cross_attention_loss(qkv_s, qkv_t).backward()
        assert all(part.grad.abs().sum() > 0 for part in qkv_s) and all(part.grad is None for part in qkv_t)

    def test_gradcheck(self):
        qkv_t = tokens()
        assert torch.autograd.gradcheck(
            lambda *qkv_s: partial_cross_attention_loss(qkv_s, qkv_t, swap_probability=0), tokens(requires_grad=True)
        )

    def test_shapes_differ(self):
        with pytest.raises(ValueError, match="one shape"):
            partial_cross_attention_loss(tokens(), tokens(width=5))

    def test_probability_out_of_range(self):
        with pytest.raises(ValueError, match=r"swap_probability is 1\.5"):
            partial_cross_attention_loss(tokens(), tokens(), swap_probability=1.5)
