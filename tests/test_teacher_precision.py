"""A teacher is asked in a lower precision only where its answers stay what they are."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hf_kdmri.training.data_options import OptionError
from hf_kdmri.training.teacher_precision import TOLERANCE, check_teacher_precision, rows_to_look_at
from tests.tiny import tiny_model, tiny_trainer


def test_it_is_the_change_of_the_probabilities():
    model = tiny_model()
    model.teacher_dtype = torch.bfloat16
    views = torch.randint(0, 256, (8, 1, 64, 64), dtype=torch.uint8)
    told = model.ask_teacher(views).logits.float().softmax(1)
    model.teacher_dtype = torch.float32
    exact = model.ask_teacher(views).logits.softmax(1)
    assert check_teacher_precision(model, views, nullcontext) is None
    model.teacher_dtype = torch.bfloat16
    moved = check_teacher_precision(model, views, nullcontext)
    assert moved is not None
    changes = (told - exact).abs().amax(1)
    assert (moved.images, moved.mean, moved.most) == (8, *map(pytest.approx, (changes.mean(), changes.max())))
    assert 0 < moved.mean < TOLERANCE


def test_the_precision_of_the_training_counts_where_the_teacher_has_none_of_its_own():
    model, views = tiny_model(), torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    assert check_teacher_precision(model, views, nullcontext) is None
    assert check_teacher_precision(model, views, lambda: torch.autocast("cpu", torch.bfloat16)) is not None


def test_a_teacher_that_bfloat16_changes_is_refused():
    model = tiny_model()
    assert model.teacher is not None
    views = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8).expand(4, -1, -1, -1)
    head = model.teacher.timm_model.get_classifier()
    with torch.no_grad():  # three classes alike in float32, until rounding makes one of them sure
        head.weight.mul_(1e5)
        head.bias.sub_(model.ask_teacher(views).logits[0])
    model.teacher_dtype = torch.bfloat16
    with pytest.raises(OptionError, match=r"in bfloat16 the teacher's probabilities move .*--teacher_dtype float32"):
        check_teacher_precision(model, views, nullcontext)


def test_it_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_kdmri.training.teacher_precision.TOLERANCE", 0.0)
    trainer = tiny_trainer(tmp_path, teacher_dtype="bfloat16")
    with pytest.raises(OptionError, match="in bfloat16"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_images_looked_at_are_spread_over_the_set():
    rows = rows_to_look_at(2144)
    assert (len(rows), rows[0], rows[-1]) == (32, 0, 2143) and len(set(rows)) == 32
    assert max(b - a for a, b in itertools.pairwise(rows)) <= 70
    assert rows_to_look_at(5) == [0, 1, 2, 3, 4]
