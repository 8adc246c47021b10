"""Teacher and student: any timm network, stage maps, and one checkpoint for four libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.views import resize_to_square
from hf_kdmri.inference import ImageClassifier
from hf_kdmri.models import prepare_pixels, stage_indices
from tests.conftest import LABELS

# One of each kind: convolutional, plain transformer, windowed transformer, linear attention, rotary position embedding.
ARCHITECTURES = {
    "mobilenetv4_conv_small_050": 64,
    "test_vit": 64,
    "test_convnext": 64,
    "efficientvit_b0": 64,
    "swin_s3_tiny_224": 224,
    "vit_small_patch16_dinov3": 64,
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(1)
    size = ARCHITECTURES[request.param]
    student = StudentForImageClassification.from_timm(request.param, labels=LABELS, image_size=size)
    folder = tmp_path_factory.mktemp("student")
    student.save_pretrained(folder)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits = student(pixels).logits
    return student, folder, pixels, logits


def test_every_loader_gives_equal_logits(saved):
    _, folder, pixels, logits = saved
    loaded = {
        "ours": StudentForImageClassification.from_pretrained(folder),
        "auto": AutoModelForImageClassification.from_pretrained(folder),
        "timm": timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    }
    with torch.no_grad():
        for name, model in loaded.items():
            output = model(pixels)
            torch.testing.assert_close(getattr(output, "logits", output), logits, atol=1e-6, rtol=0, msg=name)


def test_stage_features_agree_with_forward_and_come_finest_first(saved):
    student, _, pixels, logits = saved
    with torch.no_grad():
        stage_logits, stages = student.stage_features(pixels)
    torch.testing.assert_close(stage_logits, logits, atol=1e-6, rtol=0)
    assert len(stages) == student.config.num_scales == 3
    assert all(stage.ndim == 4 and len(stage) == 2 for stage in stages)
    sides = [stage.shape[-1] for stage in stages]
    assert sides == sorted(sides, reverse=True)


def test_checkpoint_holds_timm_keys_and_the_public_class(saved):
    student, folder, _, _ = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["TimmWrapperForImageClassification"]
    assert config["model_args"] is not None
    assert config["label_names"] == LABELS
    assert set(load_file(folder / "model.safetensors")) == set(student.timm_model.state_dict())


def test_labels_and_preprocessing_travel(saved):
    student, folder, _, _ = saved
    loaded = StudentForImageClassification.from_pretrained(folder)
    assert loaded.labels == LABELS
    assert (loaded.image_size, loaded.pixel_mean) == (student.image_size, student.pixel_mean)


OUTSIDE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_kdmri":
            raise ImportError("hf_kdmri must not be needed")
sys.meta_path.insert(0, Refuse())
import json, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, picture = sys.argv[1:]
image = Image.open(picture)
pixels = AutoImageProcessor.from_pretrained(folder)(image.convert("RGB"))["pixel_values"]
with torch.no_grad():
    auto = AutoModelForImageClassification.from_pretrained(folder)(pixels).logits[0]
    plain = timm.create_model("local-dir:" + folder, pretrained=True).eval()(pixels)[0]
scores = {row["label"]: row["score"] for row in pipeline("image-classification", model=folder)(image)}
print(json.dumps({"auto": auto.tolist(), "timm": plain.tolist(), "pipeline": scores}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_loads_where_this_package_cannot_be_imported(tmp_path: Path, mode: str):
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64)
    student.save_pretrained(tmp_path / "student")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128) if mode == "L" else (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "slice.png")
    arguments = [sys.executable, "-c", textwrap.dedent(OUTSIDE), str(tmp_path / "student"), str(tmp_path / "slice.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    outside = json.loads(done.stdout.splitlines()[-1])

    view = resize_to_square(Image.open(tmp_path / "slice.png"), student.image_size)
    array = np.asarray(view)[None, None] if mode == "L" else np.asarray(view).transpose(2, 0, 1)[None]
    pixels = prepare_pixels(
        torch.from_numpy(array.copy()), image_size=64, mean=student.pixel_mean, std=student.pixel_std
    )
    with torch.no_grad():
        logits = student(pixels).logits[0]
    # From the stored picture on: our resizing and normalisation against transformers' own image processor.
    torch.testing.assert_close(torch.tensor(outside["auto"]), logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(outside["timm"]), logits, atol=1e-6, rtol=0)
    scores = torch.tensor([outside["pipeline"][label] for label in LABELS])
    torch.testing.assert_close(scores, logits.softmax(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64), (200, 31), (17, 17)])
def test_resize_to_square_is_the_image_processor(tmp_path: Path, size: tuple[int, int]):
    """Any aspect ratio: what we train on is what a stranger's pipeline will feed the model."""
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64)
    student.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image.convert("RGB"))["pixel_values"]
    view = torch.from_numpy(np.asarray(resize_to_square(image, 64)).copy())[None, None]
    ours = prepare_pixels(view, image_size=64, mean=student.pixel_mean, std=student.pixel_std)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_pipeline_names_the_labels(tmp_path: Path):
    StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64).save_pretrained(tmp_path)
    result = pipeline("image-classification", model=str(tmp_path))(Image.new("L", (50, 70), 90))
    assert {row["label"] for row in result} == set(LABELS)
    assert sum(row["score"] for row in result) == pytest.approx(1, abs=1e-6)


def test_from_timm_keeps_timms_initialisation():
    """Transformers would redraw every layer from N(0, 0.02)."""
    torch.manual_seed(3)
    student = StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64)
    torch.manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=3)
    for name, value in network.state_dict().items():
        if name.startswith("fc."):
            continue  # the classifier starts near zero instead
        torch.testing.assert_close(student.timm_model.state_dict()[name], value, atol=0, rtol=0)


def test_local_weights_replace_all_but_the_classifier(tmp_path: Path):
    source = timm.create_model("test_resnet", num_classes=1000).state_dict()
    save_file(source, tmp_path / "imagenet.safetensors")
    teacher = TeacherForImageClassification.from_timm(
        "test_resnet", labels=LABELS, image_size=64, weights=tmp_path / "imagenet.safetensors"
    )
    state = teacher.timm_model.state_dict()
    assert state["fc.weight"].shape == (3, source["fc.weight"].shape[1])
    for name in source.keys() - {"fc.weight", "fc.bias"}:
        torch.testing.assert_close(state[name], source[name], atol=0, rtol=0)


@pytest.mark.parametrize("trained", [False, True])
def test_a_fresh_classifier_starts_small(tmp_path: Path, trained: bool):
    weights = None
    if trained:
        weights = tmp_path / "imagenet.safetensors"
        save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    teacher = TeacherForImageClassification.from_timm(
        "test_efficientnet", labels=LABELS, image_size=64, weights=weights
    )
    with torch.no_grad():
        assert teacher(torch.randn(4, 3, 64, 64)).logits.abs().max() < 0.5


def test_stochastic_depth_trains_but_is_not_saved(tmp_path: Path):
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64, drop_path_rate=0.5)
    assert any(getattr(module, "drop_prob", 0) for module in student.modules())
    student.save_pretrained(tmp_path)
    loaded = StudentForImageClassification.from_pretrained(tmp_path)
    assert not any(getattr(module, "drop_prob", 0) for module in loaded.modules())


@pytest.mark.parametrize(
    ("architecture", "num_scales", "expected"),
    [
        ("test_resnet", 3, [8, 16, 32]),
        ("test_resnet", 2, [16, 32]),
        ("efficientvit_m0", 3, [16, 32, 64]),
    ],
)
def test_hierarchical_networks_give_their_coarsest_strides(architecture, num_scales, expected):
    model = timm.create_model(architecture)
    info = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.get_dicts()
    assert [info[index]["reduction"] for index in stage_indices(model, num_scales)] == expected


@pytest.mark.parametrize(("num_scales", "expected"), [(1, [11]), (2, [5, 11]), (3, [5, 8, 11]), (4, [5, 7, 9, 11])])
def test_plain_transformers_give_depths_from_one_half(num_scales, expected):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    assert stage_indices(model, num_scales) == expected


def test_too_many_scales_are_refused():
    with pytest.raises(ValueError, match="at most 5"):
        stage_indices(timm.create_model("test_resnet"), 6)


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ValueError, match=r"knows no architecture 'mobilenetv4_conv_smal'.*mobilenetv4_conv_small"):
        StudentForImageClassification.from_timm("mobilenetv4_conv_smal", labels=LABELS)


def test_architecture_without_stages_is_refused(monkeypatch: pytest.MonkeyPatch):
    from timm.models.resnet import ResNet

    monkeypatch.delattr(ResNet, "forward_intermediates")  # every network in timm 1.0.31 has it; older ones did not
    with pytest.raises(ValueError, match=r"'test_resnet' has no stage features .* choose another"):
        StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64)


@pytest.mark.parametrize("labels", [["only"], ["a", "a"]])
def test_useless_labels_are_refused(labels):
    with pytest.raises(ValueError, match="at least two different class names"):
        StudentForImageClassification.from_timm("test_vit", labels=labels)


def test_wrong_weights_are_refused_by_name(tmp_path: Path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"resnet\.safetensors does not hold weights of 'test_vit'"):
        StudentForImageClassification.from_timm("test_vit", labels=LABELS, weights=tmp_path / "resnet.safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        StudentForImageClassification.from_timm("test_vit", labels=LABELS, weights=tmp_path / "absent.safetensors")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a \.safetensors file.*convert"):
        StudentForImageClassification.from_timm("test_vit", labels=LABELS, weights=tmp_path / "weights.bin")


def test_argument_that_the_architecture_lacks_is_refused():
    with pytest.raises(ValueError, match=r"'efficientvit_b0' does not take .*drop_path_rate"):
        StudentForImageClassification.from_timm("efficientvit_b0", labels=LABELS, drop_path_rate=0.1)


class TestPreparePixels:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def test_bytes_are_scaled_and_normalised(self):
        view = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 1, 3, 3)
        pixels = prepare_pixels(view, image_size=3, mean=(0.5,) * 3, std=(0.5,) * 3)
        expected = torch.tensor([-1.0, -0.6, 1.0]).expand(1, 3, 3, 3)
        torch.testing.assert_close(pixels, expected)

    def test_a_normalised_view_is_renormalised(self):
        view = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        normalised = prepare_pixels(view, image_size=8, mean=self.mean, std=self.std)
        ours = dict(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        again = prepare_pixels(normalised, **ours, source_mean=self.mean, source_std=self.std)
        torch.testing.assert_close(again, prepare_pixels(view, **ours), atol=1e-5, rtol=0)

    def test_equal_normalisation_changes_nothing(self):
        view = torch.randn(2, 3, 8, 8)
        same = dict(mean=self.mean, std=self.std, source_mean=self.mean, source_std=self.std)
        assert torch.equal(prepare_pixels(view, image_size=8, **same), view)

    def test_bad_views_are_refused(self):
        with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\)"):
            prepare_pixels(torch.zeros(3, 8, 8), image_size=8, mean=self.mean, std=self.std)
        with pytest.raises(ValueError, match="source_mean"):
            prepare_pixels(torch.zeros(1, 3, 8, 8), image_size=8, mean=self.mean, std=self.std)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.attn.proj.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weight of 'test_vit', the first is blocks\.1\.attn\.proj\.bias"):
        StudentForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="1 weights are missing"):
        ImageClassifier(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path):
    StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32).save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin alone, pickles.*convert them once"):
        StudentForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin alone, pickles.*convert them once"):
        ImageClassifier(str(tmp_path))
