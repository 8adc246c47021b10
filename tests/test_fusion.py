"""Learnable fusion and exits: values by hand, rasters, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation.exits import StageExits
from hf_kdmri.distillation.fusion import AttentionBasedFusion, ReviewFusion, TopDownFusionExit

# Stages (C, H, W), finest first: a CNN's pyramid, odd and oblong sizes, a transformer's one raster, 1×1 at the end.
STAGES = {
    "cnn": [(8, 12, 12), (12, 6, 6), (20, 3, 3)],
    "four": [(4, 14, 14), (8, 7, 7), (12, 4, 4), (20, 2, 2)],
    "oblong": [(8, 9, 7), (12, 5, 4)],
    "vit": [(16, 4, 4), (16, 4, 4), (16, 4, 4)],
    "smallest": [(8, 4, 4), (12, 2, 2), (20, 1, 1)],
    "one": [(8, 5, 5)],
}


def draw(shapes, batch: int = 3, **kwargs) -> list[torch.Tensor]:
    return [torch.randn(batch, *shape, **kwargs) for shape in shapes]


def channels_of(shapes) -> list[int]:
    return [shape[0] for shape in shapes]


def review(shapes) -> ReviewFusion:
    return ReviewFusion(channels_of(shapes), [10 + index for index in range(len(shapes))], mid_channels=8)


def exits(shapes) -> StageExits:
    return StageExits(channels_of(shapes), num_classes=5, width=16)


def top_down(shapes) -> TopDownFusionExit:
    return TopDownFusionExit(channels_of(shapes), num_classes=5, width=16)


MODULES = {"review": review, "exits": exits, "top_down": top_down}


def outputs_of(module, stages) -> list[torch.Tensor]:
    outputs = module(stages)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@pytest.mark.parametrize("kind", MODULES)
class TestEveryModule:
    @pytest.mark.parametrize("name", STAGES)
    def test_shapes_and_a_gradient_in_every_parameter_and_stage(self, kind, name):
        shapes = STAGES[name]
        module, stages = MODULES[kind](shapes), draw(shapes, requires_grad=True)
        outputs = outputs_of(module, stages)
        expected = {
            "review": [(3, 10 + index, *shape[1:]) for index, shape in enumerate(shapes)],
            "exits": [(3, 5)] * len(shapes),
            "top_down": [(3, 5)],
        }
        assert [tuple(output.shape) for output in outputs] == expected[kind]
        torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
        assert all(stage.grad.abs().sum() > 0 for stage in stages)

    def test_images_do_not_mix_in_eval_mode(self, kind):
        module, stages, order = MODULES[kind](STAGES["cnn"]), draw(STAGES["cnn"], 4), torch.tensor([2, 0, 3, 1])
        module(stages)  # running statistics that are not the initial ones
        module.eval()
        whole, permuted = outputs_of(module, stages), outputs_of(module, [stage[order] for stage in stages])
        alone = outputs_of(module, [stage[:1] for stage in stages])
        for output, output_permuted, output_alone in zip(whole, permuted, alone, strict=True):
            torch.testing.assert_close(output[order], output_permuted)
            torch.testing.assert_close(output[:1], output_alone)

    def test_bfloat16_autocast_is_finite(self, kind):
        module = MODULES[kind](STAGES["cnn"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = outputs_of(module, draw(STAGES["cnn"]))
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
        assert all(output.isfinite().all() for output in outputs)
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())

    def test_gradcheck(self, kind):
        shapes = [(2, 4, 4), (3, 2, 2)]
        module = {"review": lambda: ReviewFusion([2, 3], [2, 2], mid_channels=2)}.get(kind)
        module = module() if module else type(MODULES[kind](shapes))([2, 3], 2, width=8)
        module = module.double().eval()
        stages = draw(shapes, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *inputs: tuple(outputs_of(module, inputs)), stages)

    def test_round_trip_of_its_weights(self, kind):
        first, second, stages = MODULES[kind](STAGES["cnn"]), MODULES[kind](STAGES["cnn"]), draw(STAGES["cnn"])
        second.load_state_dict(first.state_dict())
        for output, copied in zip(outputs_of(first.eval(), stages), outputs_of(second.eval(), stages), strict=True):
            assert torch.equal(output, copied)

    @pytest.mark.parametrize(
        "shapes",
        [
            [(8, 12, 12), (12, 6, 6)],
            [(8, 12, 12), (13, 6, 6), (20, 3, 3)],
            [(20, 3, 3), (12, 6, 6), (8, 12, 12)],
            [(8, 144), (12, 36), (20, 9)],
        ],
    )
    def test_stages_that_do_not_fit(self, kind, shapes):
        with pytest.raises(ValueError, match=r"expected 3 student maps .* with channels \[8, 12, 20\], finest first"):
            MODULES[kind](STAGES["cnn"])(draw(shapes))

    def test_unequal_batches(self, kind):
        stages = draw(STAGES["cnn"])
        with pytest.raises(ValueError, match="batch sizes of the student maps differ"):
            MODULES[kind](STAGES["cnn"])([stages[0][:2], *stages[1:]])

    @pytest.mark.parametrize("shapes", [[], [(0, 4, 4)]])
    def test_no_stages_or_channels(self, kind, shapes):
        with pytest.raises(ValueError, match="student channels are"):
            MODULES[kind](shapes)


@pytest.mark.parametrize("module", [StageExits, TopDownFusionExit])
class TestBothExits:
    def test_too_few_classes(self, module):
        with pytest.raises(ValueError, match="num_classes is 1"):
            module([8, 16], 1)

    @pytest.mark.parametrize("width", [0, 12])
    def test_width_that_does_not_divide(self, module, width):
        with pytest.raises(ValueError, match=f"width is {width}.*multiple of 8"):
            module([8, 16], 3, width=width)

    def test_no_batch_statistics(self, module):
        made, stages = module([8, 12, 20], 5, width=16).train(), draw(STAGES["cnn"])
        whole, alone = outputs_of(made, stages), outputs_of(made, [stage[:1] for stage in stages])
        for output, output_alone in zip(whole, alone, strict=True):
            torch.testing.assert_close(output[:1], output_alone)

    @pytest.mark.parametrize("channels", [[64, 96, 960], [32, 64, 96, 960]])
    def test_small_beside_a_mobilenetv4(self, module, channels):
        assert sum(parameter.numel() for parameter in module(channels, 3).parameters()) < 300_000

    def test_learns_to_tell_two_images_apart(self, module):
        made, stages = module([8, 12, 20], 2, width=16), draw(STAGES["cnn"], 2)
        optimizer, labels = torch.optim.Adam(made.parameters(), lr=1e-2), torch.tensor([0, 1])
        for _ in range(30):
            optimizer.zero_grad()
            losses = [F.cross_entropy(logits, labels) for logits in outputs_of(made, stages)]
            torch.stack(losses).sum().backward()
            optimizer.step()
        assert max(loss.item() for loss in losses) < 0.1


class TestAttentionBasedFusion:
    @staticmethod
    def identity(fuse: bool = True) -> AttentionBasedFusion:
        """Convolutions that pass three channels through; untrained statistics divide by √(1 + 1e-5) only."""
        block = AttentionBasedFusion(3, 3, 3, fuse=fuse).eval()
        torch.nn.init.dirac_(block.get_parameter("lateral.0.weight"))
        torch.nn.init.dirac_(block.get_parameter("output.0.weight"))
        return block

    def test_deepest_stage_passes_through(self):
        stage = torch.randn(2, 3, 4, 4)
        output, fused = self.identity(fuse=False)(stage)
        torch.testing.assert_close(fused, stage, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output, stage, atol=1e-4, rtol=1e-4)

    def test_weighted_sum_with_the_upsampled_deeper_map(self):
        block = self.identity()
        torch.nn.init.zeros_(block.gate.weight)
        with torch.no_grad():
            block.gate.bias.copy_(torch.tensor([0.25, 0.75]).logit())
        stage, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
        expected = 0.25 * stage + 0.75 * deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(block(stage, deeper)[1], expected, atol=1e-4, rtol=1e-4)

    def test_weights_depend_on_the_position(self):
        # The gate looks at the first channel of the stage: where it is large, the stage wins, elsewhere the deeper map.
        block = self.identity()
        with torch.no_grad():
            block.gate.weight.zero_()
            block.gate.weight[0, 0], block.gate.weight[1, 0] = 1e3, -1e3
            block.gate.bias.zero_()
        stage = torch.randn(1, 3, 2, 2)
        stage[0, 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        deeper = torch.full((1, 3, 1, 1), 9.0)
        expected = torch.where(stage[:, :1] > 0, stage, deeper.expand_as(stage))
        torch.testing.assert_close(block(stage, deeper)[1], expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("fuse", [True, False])
    def test_deeper_map_missing_or_too_many(self, fuse):
        stage = torch.randn(2, 3, 4, 4)
        with pytest.raises(ValueError, match=f"built with fuse={fuse}"):
            self.identity(fuse)(stage, None if fuse else stage)


class TestReviewFusion:
    def test_shallow_outputs_see_deeper_stages_and_not_the_reverse(self):
        fusion, stages = review(STAGES["cnn"]).eval(), draw(STAGES["cnn"])
        changed = [stages[0], stages[1] + 1, stages[2]]
        same = [torch.equal(a, b) for a, b in zip(fusion(stages), fusion(changed), strict=True)]
        assert same == [False, False, True]

    def test_teachers_rasters(self):
        sizes = [(24, 24), (6, 5), (1, 1)]
        outputs = review(STAGES["cnn"])(draw(STAGES["cnn"]), sizes=sizes)
        assert [tuple(output.shape[-2:]) for output in outputs] == sizes

    def test_own_rasters_by_default(self):
        fusion, stages = review(STAGES["four"]).eval(), draw(STAGES["four"])
        sizes = [(14, 14), (7, 7), (4, 4), (2, 2)]
        for output, sized in zip(fusion(stages), fusion(stages, sizes=sizes), strict=True):
            assert torch.equal(output, sized)

    def test_unequal_numbers_of_stages(self):
        with pytest.raises(ValueError, match="3 student stages cannot meet 2 teacher stages"):
            ReviewFusion([8, 12, 20], [8, 12])

    def test_unequal_numbers_of_sizes(self):
        with pytest.raises(ValueError, match="3 stages need as many sizes"):
            review(STAGES["cnn"])(draw(STAGES["cnn"]), sizes=[(4, 4)])

    def test_no_mid_channels(self):
        with pytest.raises(ValueError, match="mid_channels is 0"):
            ReviewFusion([8], [8], mid_channels=0)


class TestTopDownFusionExit:
    def test_first_logits_are_nearly_equal(self):
        logits = top_down(STAGES["cnn"])(draw(STAGES["cnn"], 16))
        assert logits.abs().max() < 0.3

    def test_gates_start_at_one_half(self):
        module = TopDownFusionExit([8, 8], 2, width=8).eval()
        for lateral in module.laterals:
            torch.nn.init.dirac_(lateral[0].weight)
        stage, deeper = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
        half_sum = (module.laterals[0](stage) + module.laterals[1](deeper)) / 2
        pooled = [module.smoothings[0](half_sum), module.smoothings[1](module.laterals[1](deeper))]
        expected = module.classifier(torch.cat([maps.mean((2, 3)) for maps in pooled], dim=1))
        torch.testing.assert_close(module([stage, deeper]), expected)

    def test_every_stage_reaches_the_logits(self):
        module, stages = top_down(STAGES["cnn"]).eval(), draw(STAGES["cnn"])
        before = module(stages)
        for index in range(3):
            changed = [stage * torch.randn_like(stage) if i == index else stage for i, stage in enumerate(stages)]
            assert not torch.allclose(before, module(changed), atol=1e-5)


class TestStageExits:
    def test_each_branch_sees_its_own_stage_only(self):
        module, stages = exits(STAGES["cnn"]).eval(), draw(STAGES["cnn"])
        changed = [stages[0], torch.randn_like(stages[1]), stages[2]]
        same = [torch.equal(a, b) for a, b in zip(module(stages), module(changed), strict=True)]
        assert same == [True, False, True]

    def test_one_block_for_each_deeper_stage(self):
        strided = [
            sum(isinstance(layer, torch.nn.Conv2d) and layer.stride == (2, 2) for layer in branch)
            for branch in exits(STAGES["four"]).branches
        ]
        assert strided == [3, 2, 1, 0]
