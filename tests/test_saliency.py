from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri import StudentForImageClassification
from hf_kdmri.evaluation.saliency.maps import saliency_layer, saliency_maps
from hf_kdmri.evaluation.saliency.scores import saliency_scores
from tests.conftest import LABELS

SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
# architecture, its further arguments, image size, the layer expected at the last stage
NETWORKS = [
    ("test_resnet", {}, 64, "layer4: 2 × 2 positions of 96 channels, NCHW"),
    ("test_efficientnet", {}, 64, "blocks.4: 2 × 2 positions of 64 channels, NCHW"),
    ("test_convnext", {}, 64, "stages.3: 2 × 2 positions of 64 channels, NCHW"),
    ("tf_efficientnet_lite0", {}, 64, "blocks.6: 2 × 2 positions of 320 channels, NCHW"),
    ("mobilenetv4_conv_small", {}, 64, "blocks.4: 2 × 2 positions of 960 channels, NCHW"),
    ("efficientvit_b0", {}, 64, "stages.3: 2 × 2 positions of 128 channels, NCHW"),
    ("edgenext_xx_small", {}, 64, "stages.3: 2 × 2 positions of 168 channels, NCHW"),
    ("test_mambaout", {}, 64, "stages.3: 2 × 2 positions of 64 channels, NHWC"),
    ("swin_tiny_patch4_window7_224", SMALL_SWIN, 224, "layers.3: 7 × 7 positions of 128 channels, NHWC"),
    ("levit_128s", {}, 64, "stages.2: 1 × 1 positions of 384 channels, NLC"),
    ("test_vit", {}, 64, "blocks.5.norm1: 4 × 4 positions of 64 channels, NLC after 1 prefix tokens"),
    ("test_vit2", {}, 64, "blocks.7: 4 × 4 positions of 64 channels, NLC after 1 prefix tokens"),
    (
        "deit_tiny_distilled_patch16_224",
        {"depth": 3},
        64,
        "blocks.2.norm1: 4 × 4 positions of 192 channels, NLC after 2 prefix tokens",
    ),
    (
        "pit_ti_distilled_224",
        {},
        224,
        "transformers.2.blocks.3.norm1: 7 × 7 positions of 256 channels, NLC after 2 prefix tokens",
    ),
]


def classifier(architecture: str, size: int = 64, **model_args: Any) -> StudentForImageClassification:
    """A network whose logits differ from image to image: a fresh classifier starts near zero."""
    model = StudentForImageClassification.from_timm(architecture, labels=LABELS, image_size=size, model_args=model_args)
    heads: Any = model.timm_model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
    return model


@pytest.mark.parametrize(("architecture", "model_args", "size", "layer"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_every_kind_of_network_has_maps(architecture, model_args, size, layer) -> None:
    model = classifier(architecture, size, **model_args)
    images = torch.randn(2, 3, size, size)
    assert str(saliency_layer(model, images)) == layer
    maps = saliency_maps(model, images, target=torch.tensor([0, 2]))
    assert maps.shape == (2, size, size) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("architecture", ["test_resnet", "test_mambaout", "test_vit", "test_vit2", "levit_128s"])
def test_the_layer_laid_out_is_the_stage_map_and_goes_back(architecture) -> None:
    model = classifier(architecture, 128)
    images = torch.randn(2, 3, 128, 128)
    layer = saliency_layer(model, images, stage=-2)
    seen: list[Tensor] = []
    handle = model.timm_model.get_submodule(layer.module).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(images)
        handle.remove()
        _, stages = model.stage_features(images)
        torch.testing.assert_close(layer.to_maps(seen[0]), stages[-2])
        assert torch.equal(layer.from_maps(layer.to_maps(seen[0]), seen[0]), seen[0])


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_mambaout", "test_vit"])
def test_maps_are_the_published_formula(architecture, method) -> None:
    model = classifier(architecture, 96)
    images, target = torch.randn(3, 3, 96, 96), torch.tensor([2, 0, 1])
    layer = saliency_layer(model, images)
    seen: list[Tensor] = []
    handle = model.timm_model.get_submodule(layer.module).register_forward_hook(lambda *call: seen.append(call[2]))
    logits = model(images).logits
    handle.remove()
    gradient = layer.to_maps(torch.autograd.grad(logits[range(3), target].sum(), seen[0])[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True) if method == "gradcam" else gradient
    coarse = (weights * layer.to_maps(seen[0])).sum(dim=1, keepdim=True).relu()
    expected = F.interpolate(coarse, size=96, mode="bilinear")[:, 0].detach()
    expected = expected / expected.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(
        saliency_maps(model, images, target=target, method=method), expected, atol=1e-4, rtol=1e-4
    )


def test_without_a_target_the_prediction_is_explained() -> None:
    model = classifier("test_convnext")
    images = torch.randn(4, 3, 64, 64)
    predicted = model(images).logits.argmax(dim=1)
    maps = saliency_maps(model, images)
    assert torch.equal(maps, saliency_maps(model, images, target=predicted))
    assert not torch.equal(maps, saliency_maps(model, images, target=(predicted + 1) % 3))


def test_the_model_is_left_as_it_was_and_frozen_models_inside_inference_mode_work() -> None:
    model = classifier("test_vit").requires_grad_(False)
    images = torch.randn(2, 3, 64, 64)
    expected = saliency_maps(model, images)
    with torch.inference_mode():
        inside = saliency_maps(model, images * 1)
    torch.testing.assert_close(inside, expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert images.grad is None and not images.requires_grad


def test_images_that_are_not_square_and_the_finer_stage() -> None:
    model = classifier("test_resnet")
    images = torch.randn(2, 3, 64, 96)
    assert saliency_maps(model, images, stage=-2).shape == (2, 64, 96)
    layer = saliency_layer(model, images, stage=-2)
    assert (layer.module, layer.height, layer.width) == ("layer3", 4, 6)


def test_rounding_errors_are_not_shown_as_evidence() -> None:
    """Swin normalises its last map at each position: there the gradient stands upright on the activation."""
    model = classifier("swin_tiny_patch4_window7_224", 224, **SMALL_SWIN)
    with pytest.raises(ValueError, match=r"evidence of 'layers.3'.* cancels.*take gradcam or another stage"):
        saliency_maps(model, torch.randn(1, 3, 224, 224), method="hirescam")


def test_a_layer_that_no_logit_depends_on_is_told() -> None:
    model = classifier("test_resnet")
    nn.init.zeros_(model.timm_model.get_classifier().weight)
    with pytest.raises(ValueError, match=r"no position of 'layer4' of 'test_resnet' reaches the logits"):
        saliency_maps(model, torch.randn(1, 3, 64, 64))


def test_a_layer_in_an_unknown_layout_is_told() -> None:
    model = classifier("pit_ti_distilled_224", 224)
    with pytest.raises(ValueError, match=r"output of 'transformers.1' .* is no map of \(128, 14, 14\)"):
        saliency_maps(model, torch.randn(1, 3, 224, 224), stage=-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lime"}, "method is 'lime'"),
        ({"stage": 3}, "stage is 3, but the model has 3 stage maps"),
        ({"target": torch.tensor([0])}, r"target has shape \(1,\)"),
        ({"target": torch.tensor([0.0, 1.0])}, "torch.float32"),
        ({"target": torch.tensor([0, 3])}, "holds 0 to 3; expected classes 0 to 2"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"shape \(3, 64, 64\)"),
    ],
)
def test_wrong_arguments_are_refused(change, message) -> None:
    arguments = {"pixel_values": torch.randn(2, 3, 64, 64), **change}
    with pytest.raises(ValueError, match=message):
        saliency_maps(classifier("test_vit"), **arguments)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        saliency_maps(classifier("test_vit").train(), torch.randn(1, 3, 64, 64))


class BrightnessReader(nn.Module):
    """Class 0 is how far a field of view is brighter than one half; class 1 is always 0.001."""

    field: Tensor

    def __init__(self, field: Tensor) -> None:
        super().__init__()
        self.register_buffer("field", field)
        self.stage = nn.Identity()
        self.feature_info = [{"module": "stage", "reduction": 4, "num_chs": 2}]

    def evidence(self, pixels: Tensor) -> Tensor:
        bright = (F.avg_pool2d(pixels.mean(dim=1, keepdim=True), 4) - 0.5).relu() * self.field
        return torch.cat([bright, torch.full_like(bright, 0.001)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.stage(self.evidence(pixels)).mean(dim=(2, 3))

    def forward_intermediates(self, pixels: Tensor, **_: Any) -> list[Tensor]:
        return [self.evidence(pixels)]


class KnownAnswer(nn.Module):
    """As much of a `TimmClassifier` as saliency maps need, with evidence at a known place."""

    def __init__(self, field: Tensor) -> None:
        super().__init__()
        self.timm_model = BrightnessReader(field)
        self.stage_indices, self.labels = [0], ["bright", "dark"]
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = SimpleNamespace(architecture="known answer")

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.timm_model(pixels))


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize(("looks_at", "hit"), [("everything", 1.0), ("corner", 0.0)])
def test_a_model_of_known_evidence_is_scored_as_it_deserves(looks_at, hit, method) -> None:
    image, mask = torch.zeros(64, 64), torch.zeros(64, 64, dtype=torch.bool)
    image[4:60, 4:60] = 0.3  # the head
    mask[36:52, 32:48] = True
    image[mask] = 1.0  # the tumour
    field = torch.ones(16, 16)
    if looks_at == "corner":  # a shortcut: a bright mark that is no tumour
        image[8:16, 8:16] = 1.0
        field = torch.zeros(16, 16)
        field[:5, :5] = 1
    model: Any = KnownAnswer(field).eval()
    maps = saliency_maps(model, image.expand(1, 3, 64, 64), method=method)
    scores = saliency_scores(maps, [image.numpy()], [mask.numpy()])
    assert (scores.hit[0], scores.tolerant_hit[0]) == (hit, hit)
    assert scores.chance[0] == pytest.approx(16 * 16 / 56**2)
    # Enlarged fourfold, half a cell of the map runs over each edge of the tumour.
    assert scores.energy[0] > 0.75 if hit else scores.energy[0] == 0
