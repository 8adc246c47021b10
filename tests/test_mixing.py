"""mixup: every view a mixture of two, its label and mask likewise, the same for teacher and student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_kdmri import DistillationTrainingArguments
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.mixing import mix_views
from hf_kdmri.distillation import tumour_mask_loss
from tests.tiny import tiny_model, tiny_trainer

LABELS = torch.tensor([0, 2, 1, 2])
INDEX = np.array([7, 3, 11, 0])


def views_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (4, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return views, 255 * torch.randint(0, 2, (4, 1, 8, 8), generator=draw, dtype=torch.uint8)


def mixed(views: torch.Tensor, masks: torch.Tensor | None = None, **changes: Any) -> tuple[torch.Tensor, ...]:
    options = {"labels": LABELS, "index": INDEX, "alpha": 1.0, "classes": 3, "seed": 5, "epoch": 2, **changes}
    return mix_views(views, masks, **options)  # type: ignore[return-value]


def test_view_mask_and_label_are_mixed_in_one_ratio_with_the_image_before() -> None:
    views, masks = views_and_masks()
    said, said_masks, labels = mixed(views, masks)
    before = LABELS.roll(1)
    assert said.dtype == said_masks.dtype == torch.uint8 and said.shape == views.shape
    for row in range(4):
        share = float(labels[row, LABELS[row]])
        if LABELS[row] == before[row]:
            assert share == 1
            continue
        assert 0.5 <= share <= 1 and float(labels[row, before[row]]) == pytest.approx(1 - share, abs=1e-6)
        for out, values in ((said, views), (said_masks, masks)):
            expected = share * values[row].double() + (1 - share) * values[row - 1].double()
            assert (out[row].double() - expected).abs().max() <= 0.5 + 1e-3
    torch.testing.assert_close(labels.sum(1), torch.ones(4))


def test_the_ratio_is_the_images_own_and_changes_with_seed_and_epoch() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    views, _ = views_and_masks()
    shares = mixed(views, labels=labels)[2].amax(1)
    swapped = mixed(views, labels=labels, index=INDEX[[1, 0, 2, 3]])[2].amax(1)
    assert torch.equal(swapped[[1, 0, 2, 3]], shares)
    for name in ("seed", "epoch"):
        assert not torch.isclose(mixed(views, None, labels=labels, **{name: 9})[2].amax(1), shares).any()
    assert torch.equal(mixed(views, labels=labels, epoch=np.full(4, 2))[2].amax(1), shares)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.75), (0.2, 0.9), (8.0, 0.6)])
def test_ratios_are_of_the_beta_distribution(alpha: float, expected: float) -> None:
    # E max(λ, 1 − λ): 3/4 for even λ; the others to be seen from 4000 draws of SciPy's
    from scipy.stats import beta

    count = 4000
    labels = torch.arange(count) % 2
    said = mixed(torch.zeros(count, 1, 1, 1), labels=labels, index=np.arange(count), alpha=alpha, classes=2)[2]
    theirs = beta(alpha, alpha).expect(lambda share: np.maximum(share, 1 - share))
    assert said.amax(1).mean() == pytest.approx(theirs, abs=0.01) == pytest.approx(expected, abs=0.05)


def test_cross_entropy_of_a_mixed_label_is_the_mixture_of_two() -> None:
    views, _ = views_and_masks()
    labels, logits = mixed(views)[2], torch.randn(4, 3)
    own = labels.gather(1, LABELS[:, None])[:, 0]
    both = own * F.cross_entropy(logits, LABELS, reduction="none")
    both += (1 - own) * F.cross_entropy(logits, LABELS.roll(1), reduction="none")
    torch.testing.assert_close(F.cross_entropy(logits, labels), both.mean())


def test_the_mask_loss_is_least_for_the_mixed_mask_drawn_as_it_is() -> None:
    views, masks = views_and_masks()
    soft = mixed(views, masks)[1]
    drawn = torch.logit(soft.float() / 255, eps=1e-6)
    least = tumour_mask_loss(drawn, soft)
    assert all(tumour_mask_loss(drawn + shift, soft) > least for shift in (-0.5, 0.5))


def trained(folder: Path, seen: list[tuple[torch.Tensor, torch.Tensor]], **options: object) -> dict[str, torch.Tensor]:
    model = tiny_model()

    # What the module gets, both models get: each in its own size, the teacher's answer without gradient.
    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training:
            seen.append((args[0], kwargs["labels"]))
        else:
            assert kwargs["labels"].ndim == 1  # nothing is mixed in an evaluation

    model.register_forward_pre_hook(look, with_kwargs=True)
    trainer = tiny_trainer(folder, model, max_steps=3, **options)
    trainer.augmentation = RandomViews()
    trainer.train()
    return {name: value.clone() for name, value in model.student.state_dict().items()}


def test_both_models_get_the_mixture_and_a_run_is_repeated_to_the_digit(tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain: list[tuple[torch.Tensor, torch.Tensor]] = []
    first, second = (trained(tmp_path / name, seen, mixup=0.4) for name in "ab")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    without = trained(tmp_path / "c", plain)
    assert any(not torch.equal(value, first[name]) for name, value in without.items())
    for (views, labels), (before, own) in zip(seen, plain, strict=False):
        assert views.dtype == torch.uint8 and labels.shape == (len(own), 3)
        shares = labels.gather(1, own[:, None]).view(-1, 1, 1, 1)
        assert (shares >= 0.5).all() and (shares < 0.999).any()
        alone = own == own.roll(1)  # both of one class: the label does not tell the ratio
        expected = shares * before + (1 - shares) * before.roll(1, 0)
        assert (views - expected)[~alone].abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_loss": "dkd"}, "logit_loss dkd needs one label"),
        ({"exit_weight": 1.0}, "exit_weight needs one label"),
        ({"feature_weight": 1.0, "feature_loss": "ofa"}, "feature_loss ofa needs one label"),
        ({"teacher_cache": "cache"}, "teacher_cache keeps"),
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"mixup": float("nan")}, "mixup is nan"),
    ],
)
def test_what_cannot_go_with_it_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments(output_dir=str(tmp_path), **{"mixup": 0.2, **changes})
