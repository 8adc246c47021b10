"""The module that trains: who learns, who does not, and who sees what."""

from __future__ import annotations

import pytest
import torch

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.distillation import LossOptions, fused_spatial_similarity_loss, kd_loss
from hf_kdmri.models import prepare_pixels
from tests.conftest import LABELS


@pytest.fixture
def student() -> StudentForImageClassification:
    return StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64)


@pytest.fixture
def teacher() -> TeacherForImageClassification:
    return TeacherForImageClassification.from_timm("test_convnext", labels=LABELS, image_size=96)


@pytest.fixture
def views() -> torch.Tensor:
    return torch.randint(0, 256, (4, 1, 96, 96), dtype=torch.uint8)


GEOMETRY = LossOptions(geometry_weight=1.0)
LABEL = torch.tensor([0, 1, 2, 1])


def test_loss_is_the_weighted_sum_of_its_terms(student, teacher, views):
    options = LossOptions(logit_weight=0.7, geometry_weight=3.0, temperature=2.0, geometry_grid=4)
    model = DistillationModel(student, teacher, loss_options=options).train()
    student.eval()  # no dropout, so that the parts can be computed again
    output = model(views, labels=LABEL)

    def stages(net):
        return net.stage_features(
            prepare_pixels(views, image_size=net.image_size, mean=net.pixel_mean, std=net.pixel_std)
        )

    (zs, maps_s), (zt, maps_t) = stages(student), stages(teacher)
    expected = {
        "ce": torch.nn.functional.cross_entropy(zs, LABEL),
        "logit": kd_loss(zs, zt, temperature=2.0),
        "geometry": fused_spatial_similarity_loss(maps_s, maps_t, grid=4),
    }
    for name, value in expected.items():
        torch.testing.assert_close(output.terms[name], value)
    torch.testing.assert_close(output.loss, expected["ce"] + 0.7 * expected["logit"] + 3 * expected["geometry"])


def test_gradients_reach_every_student_parameter_and_none_of_the_teacher(student, teacher, views):
    model = DistillationModel(student, teacher, loss_options=GEOMETRY).train()
    model(views, labels=LABEL).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teacher_stays_in_eval_mode_and_unchanged(student, views):
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=96)  # has batch norm
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = DistillationModel(student, teacher, loss_options=GEOMETRY).train()
    assert student.training and not any(module.training for module in teacher.modules())
    model(views, labels=LABEL)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_state_dict_has_no_teacher(student, teacher):
    state = DistillationModel(student, teacher).state_dict()
    assert state and all(key.startswith("student.") for key in state)
    wrapped = torch.nn.ModuleDict({"inner": DistillationModel(student, teacher)}).state_dict()
    assert wrapped and all(key.startswith("inner.student.") for key in wrapped)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.nn.ModuleDict({"inner": model})])
def test_a_state_without_teacher_is_loaded_and_nothing_else_may_be_missing(wrap, student, teacher, views):
    other = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=64)
    source = wrap(DistillationModel(other, teacher, loss_options=GEOMETRY))
    target = wrap(DistillationModel(student, teacher, loss_options=GEOMETRY))
    teachers = {name: value.clone() for name, value in teacher.state_dict().items()}
    target.load_state_dict(source.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(value, teachers[name]) for name, value in teacher.state_dict().items())
    lacking = source.state_dict()
    gone = lacking.popitem()[0]
    with pytest.raises(RuntimeError, match=f"Missing key.*{gone}"):
        target.load_state_dict(lacking)


def test_both_see_the_same_view_in_their_own_form(student, teacher, views):
    seen = {}
    student.timm_model.register_forward_pre_hook(lambda _, args: seen.update(student=args[0]))
    for model in (student, teacher):
        name = "student" if model is student else "teacher"
        original = model.stage_features

        def recording(pixels, name=name, original=original):
            seen[name] = pixels
            return original(pixels)

        model.stage_features = recording
    DistillationModel(student, teacher, loss_options=GEOMETRY).train()(views, labels=LABEL)
    for model, name in ((student, "student"), (teacher, "teacher")):
        assert seen[name].shape == (4, 3, model.image_size, model.image_size)
    scale = torch.tensor(teacher.pixel_std).view(1, 3, 1, 1)
    offset = torch.tensor(teacher.pixel_mean).view(1, 3, 1, 1)
    restored = seen["teacher"] * scale + offset
    torch.testing.assert_close(restored, (views.float() / 255).expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_a_normalised_view_and_its_bytes_give_one_loss(student, teacher):
    views = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    normalised = prepare_pixels(views, image_size=64, mean=student.pixel_mean, std=student.pixel_std)
    model = DistillationModel(student, teacher, loss_options=GEOMETRY).train()
    student.eval()
    # The teacher is larger, so it gets the view enlarged; from bytes the overshoot is clipped, hence the tolerance.
    torch.testing.assert_close(model(views, labels=LABEL).loss, model(normalised, labels=LABEL).loss, rtol=2e-2, atol=0)


def test_a_teacher_with_another_label_order_is_mapped_by_name(student, views):
    torch.manual_seed(5)
    teacher = TeacherForImageClassification.from_timm("test_convnext", labels=LABELS, image_size=96)
    torch.manual_seed(5)
    order = [2, 0, 1]
    turned = TeacherForImageClassification.from_timm("test_convnext", labels=[LABELS[i] for i in order], image_size=96)
    turned.load_state_dict(teacher.state_dict())
    head = turned.timm_model.get_classifier()
    original = teacher.timm_model.get_classifier()
    with torch.no_grad():
        head.weight.copy_(original.weight[order])
        head.bias.copy_(original.bias[order])
    losses = []
    for model in (teacher, turned):
        distillation = DistillationModel(student, model, loss_options=GEOMETRY).train()
        student.eval()
        losses.append(distillation(views, labels=LABEL).loss)
    torch.testing.assert_close(*losses)


def test_a_teacher_of_other_classes_is_refused(student):
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=["cat", "dog", "bird"], image_size=64)
    with pytest.raises(ValueError, match=r"\['cat', 'dog', 'bird'\] are not the student's"):
        DistillationModel(student, teacher)


def test_eval_asks_no_teacher(student, teacher, views):
    model = DistillationModel(student, teacher).eval()
    teacher.timm_model.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked"))
    output = model(views, labels=LABEL)
    assert list(output.terms) == ["ce"]
    assert model(views).loss is None


def test_terms_with_weight_zero_are_not_computed(student, teacher, views):
    teacher.stage_features = lambda *_: pytest.fail("stages were computed for nothing")
    model = DistillationModel(student, teacher, loss_options=LossOptions()).train()
    assert set(model(views, labels=LABEL).terms) == {"ce", "logit"}
    teacher.timm_model.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked for nothing"))
    model.use_loss_options(LossOptions(logit_weight=0))
    assert set(model(views, labels=LABEL).terms) == {"ce"}


def test_channels_last_and_a_bfloat16_teacher_change_rounding_only(views):
    student = StudentForImageClassification.from_timm("test_efficientnet", labels=LABELS, image_size=96)
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=96)
    plain = DistillationModel(student, teacher, loss_options=GEOMETRY).train()
    student.eval()
    reference = plain(views, labels=LABEL)
    fast = DistillationModel(
        student, teacher, loss_options=GEOMETRY, channels_last=True, teacher_dtype=torch.bfloat16
    ).train()
    student.eval()
    output = fast(views, labels=LABEL)
    torch.testing.assert_close(output.logits, reference.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.loss, reference.loss, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(logit_weight=-1), "logit_weight is -1"),
        (dict(temperature=0), "temperature is 0"),
        (dict(geometry_grid=0), "geometry_grid is 0"),
        (dict(label_smoothing_factor=1.0), "label_smoothing_factor is 1.0"),
        (dict(geometry_warmup=1.5), "geometry_warmup is 1.5"),
        (dict(logit_loss="l2"), "logit_loss is 'l2'; choose one of kd, dkd, dist"),
        (dict(stage_weights=[0.0, 0.0]), "stage_weights is"),
        (dict(stage_weights=[1.0, float("nan")]), "stage_weights is"),
        (dict(stage_weights=[]), "stage_weights is"),
        (dict(logit_weight=float("inf")), "logit_weight is inf"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(ofa_gamma=0), "ofa_gamma is 0"),
        (dict(geometry_grid=10_000), "geometry_grid is 10000; at most 56"),
        (dict(lesion_weighting=True), "lesion_weighting weights the positions of the term geometry, which is off"),
        (dict(lesion_weighting=True, geometry_weight=1, geometry_difference="cka"), '"cka" takes no weights'),
    ],
)
def test_loss_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossOptions(**options)
