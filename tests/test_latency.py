from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from hf_kdmri.evaluation import count_parameters, milliseconds_per_image


class Sleeper(nn.Module):
    """Takes 4 ms for each batch and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: list[tuple] = []

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.seen.append(
            (self.training, tuple(pixel_values.shape), pixel_values.dtype, torch.is_inference_mode_enabled())
        )
        time.sleep(0.004)
        return pixel_values


def test_the_median_pass_is_divided_by_the_batch() -> None:
    model = Sleeper().train()
    measured = milliseconds_per_image(model, (8, 6), batch_size=4, warmup=1, repeats=5)
    assert 1.0 <= measured < 5.0
    assert model.seen == [(False, (4, 3, 8, 6), torch.float64, True)] * 6
    assert model.training


def test_the_mode_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(5, 5)).train()
    with pytest.raises(RuntimeError):
        milliseconds_per_image(model, 8)
    assert model.training


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"repeats": 0}, {"warmup": -1}, {"image_size": 0}])
def test_bad_counts_are_refused_by_name(bad) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
        milliseconds_per_image(Sleeper(), **{"image_size": 8, **bad})


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Identity has no parameters"):
        milliseconds_per_image(nn.Identity(), 8)


def test_parameters_are_counted_once_frozen_or_not() -> None:
    first = nn.Linear(3, 3, bias=False)
    first.weight.requires_grad_(False)
    second = nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second, nn.BatchNorm1d(3))) == 9 + 6
