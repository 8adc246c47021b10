from __future__ import annotations

import math
import sys
import zlib

import numpy as np
import pytest
import torch

from hf_kdmri.data.phantom_anatomy import draw_anatomy, draw_lesion, draw_scan, draw_slice
from hf_kdmri.data.pixels import window_to_uint8
from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES, corrupt

MONAIS = ("bias_field", "rician_noise", "gibbs_ringing")


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    """Six phantom slices, (6, 1, 96, 96)."""
    rng = np.random.default_rng(3)
    slices = []
    for label in (0, 1, 2, 0, 1, 2):
        raw, _ = draw_slice(rng, draw_anatomy(rng, 96), draw_scan(rng), draw_lesion(rng, label), label, 0.2, 96)
        slices.append(window_to_uint8(raw)[0])
    return torch.from_numpy(np.stack(slices)[:, None])


def need_monai(corruption: str) -> None:
    if corruption in MONAIS:
        pytest.importorskip("monai", reason=f"{corruption} is MONAI's: pip install 'hf_kdmri[robustness]'")


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_change_grows_with_severity_and_0_is_the_identity(corruption, views) -> None:
    need_monai(corruption)
    index = torch.arange(len(views))
    changes = [
        (corrupt(views, index, corruption, level).float() - views.float()).abs().mean().item()
        for level in range(len(SEVERITIES[corruption]) + 1)
    ]
    assert changes[0] == 0
    assert changes[1] > 0.3, "the mildest severity is invisible"
    assert (np.diff(changes) > 0).all(), changes


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_a_picture_does_not_depend_on_its_batch(corruption, views) -> None:
    need_monai(corruption)
    level = len(SEVERITIES[corruption])
    whole = corrupt(views, range(6), corruption, level, seed=5)
    shuffled = corrupt(views[[4, 1]], torch.tensor([4, 1]), corruption, level, seed=5)
    assert torch.equal(whole[[4, 1]], shuffled)
    assert type(whole) is torch.Tensor  # and not a subclass of MONAI's
    assert whole.dtype == torch.uint8
    assert whole.shape == views.shape


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_grey_stored_as_rgb_gets_the_same(corruption, views) -> None:
    need_monai(corruption)
    grey = corrupt(views[:2], [0, 1], corruption, 1)
    coloured = corrupt(views[:2].expand(-1, 3, -1, -1), [0, 1], corruption, 1)
    # sums over three channels round differently, so one step of 255 is allowed
    assert (coloured.int() - grey.int()).abs().max() <= 1


@pytest.mark.parametrize("corruption", ["bias_field", "rician_noise", "ghosting", "gamma", "rotation", "shift"])
def test_random_ones_differ_between_pictures_and_seeds(corruption, views) -> None:
    need_monai(corruption)
    same = views[:1].expand(8, -1, -1, -1)
    drawn = corrupt(same, range(8), corruption, 3)
    assert len({picture.numpy().tobytes() for picture in drawn}) > 1
    assert not torch.equal(drawn, corrupt(same, range(8), corruption, 3, seed=1))
    assert torch.equal(drawn, corrupt(same, range(8), corruption, 3))


def test_known_answers(views) -> None:
    index = range(6)
    assert torch.equal(corrupt(views, index, "horizontal_flip", 1), views.flip(-1))
    assert torch.equal(corrupt(views, index, "vertical_flip", 1), views.flip(-2))
    flat = torch.full((1, 1, 32, 32), 100, dtype=torch.uint8)
    for corruption in ("blur", "downsampling", "contrast"):
        assert torch.equal(corrupt(flat, [0], corruption, 5), flat), corruption
    assert corrupt(flat, [0], "brightness", 2).unique().tolist() in ([126], [74])  # 100 ± 25.5, rounded to even
    gammas = {round(255 * (100 / 255) ** g) for g in (1.2, 1 / 1.2)}
    assert set(corrupt(flat.expand(9, 1, 32, 32), range(9), "gamma", 1).unique().tolist()) == gammas


def test_ghosts_are_the_shift_theorems(views) -> None:
    """The two copies are what weighting the lines of k-space by 1 + s·cos(2πjd/N + φ) gives."""
    picture, strength = views[0].double() / 255, SEVERITIES["ghosting"][2]
    draw = np.random.default_rng((0, 7, zlib.crc32(b"ghosting")))
    axis, share, phase = -1 - int(draw.integers(2)), draw.uniform(0.15, 0.45), draw.uniform(0, 2 * math.pi)
    lines = torch.fft.fftfreq(96, 1 / 96, dtype=torch.float64)
    weights = 1 + strength * torch.cos(2 * math.pi * lines * round(share * 96) / 96 + phase).to(torch.complex128)
    weights = weights if axis == -1 else weights[:, None]
    ghosted = torch.fft.ifft(torch.fft.fft(picture, dim=axis) * weights, dim=axis)
    expected = (ghosted.abs() * 255).round().clamp(0, 255)
    assert (corrupt(views[:1], [7], "ghosting", 3)[0] - expected).abs().max() <= 1


def test_rician_noise_lifts_the_background_by_rayleighs_mean() -> None:
    pytest.importorskip("monai")
    black = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    noise = corrupt(black, [0], "rician_noise", 5).float()
    assert noise.mean().item() == pytest.approx(0.16 * 255 * np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corruption": "snow"}, "unknown corruption 'snow'; there are bias_field"),
        ({"severity": 6}, "severity of blur is 6; expected 0 to 5"),
        ({"corruption": "vertical_flip", "severity": 2}, "expected 0 to 1"),
        ({"severity": -1}, "expected 0 to 5"),
        ({"index": [0]}, "1 indices for 2 views"),
        ({"views": torch.zeros(2, 1, 8, 8)}, "torch.float32"),
        ({"views": torch.zeros(2, 2, 8, 8, dtype=torch.uint8)}, r"shape \(2, 2, 8, 8\)"),
    ],
)
def test_wrong_inputs_are_named(change, message) -> None:
    given = {"views": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "index": [0, 1], "corruption": "blur", "severity": 1}
    with pytest.raises(ValueError, match=message):
        corrupt(**{**given, **change})


def test_an_empty_batch_stays_empty() -> None:
    assert corrupt(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), [], "blur", 1).shape == (0, 1, 8, 8)


def test_without_monai_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.transforms", None)
    view = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ImportError, match=r"hf_kdmri\[robustness\]"):
        corrupt(view, [0], "rician_noise", 1)
    corrupt(view, [0], "blur", 1)  # is kornia's and works without
