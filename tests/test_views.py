"""Views: what the models are fed, and how it is drawn."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader

from hf_kdmri.data.appearance import RandomAppearance, image_keys
from hf_kdmri.data.augmentation import VIEW_STYLES, RandomViews, _sampling_grid
from hf_kdmri.data.views import ViewDataset, collate_views, prepare_views, resize_to_square
from tests.tiny import tiny_views


def image_set(mode: str, count: int = 150) -> datasets.Dataset:
    draw = np.random.default_rng(0)
    shape = (20, 30) if mode == "L" else (20, 30, 3)
    images = [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]}, features=features)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_views_are_the_resized_images_in_order(mode: str, channels: int):
    dataset = image_set(mode)
    views = prepare_views(dataset, 16)
    assert len(views) == 150 and views.size == 16
    for index in (0, 1, 63, 64, 149):  # around the borders of the batches that are written
        expected = np.asarray(resize_to_square(dataset[index]["image"], 16)).reshape(16, 16, channels)
        np.testing.assert_array_equal(views.view(index), expected.transpose(2, 0, 1))
        assert views[index]["labels"] == index % 2


def test_a_subset_keeps_its_own_order(tmp_path):
    dataset = image_set("L").shuffle(seed=3).select(range(20)).flatten_indices()
    views = prepare_views(dataset, 16)
    expected = np.asarray(resize_to_square(dataset[7]["image"], 16))
    np.testing.assert_array_equal(views.view(7)[0], expected)
    assert views.labels.tolist() == dataset["label"][:]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux' table of mapped files")
def test_views_lie_in_a_file_that_is_mapped_and_not_read(tmp_path):
    image_set("L").save_to_disk(str(tmp_path / "set"))
    views = prepare_views(datasets.Dataset.load_from_disk(str(tmp_path / "set")), 64)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name.endswith(".arrow"):
            mapped.append([int(address, 16) for address in place.split("-")])
    for chunk in views.chunks:
        start = chunk.__array_interface__["data"][0]
        assert any(first <= start and start + chunk.nbytes <= last for first, last in mapped)


def test_two_processes_prepare_what_one_does():
    dataset = image_set("L")
    one, two = prepare_views(dataset, 16), prepare_views(dataset, 16, num_proc=2)
    np.testing.assert_array_equal(np.concatenate(one.chunks), np.concatenate(two.chunks))


def test_batches_are_the_single_views_stacked():
    views = tiny_views(16)
    whole = next(iter(DataLoader(views, batch_size=6, collate_fn=collate_views)))
    single = collate_views([views[i] for i in range(6)])
    assert whole.keys() == single.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(value, single[key], err_msg=key)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="4 views, but 3 labels"):
        ViewDataset([np.zeros((4, 1, 8, 8), np.uint8)], np.zeros(3, np.int64), 8)


NOTHING = dict(tone=0, sequence=0, shading=0, sharpness=0, coarse=0, noise=0, marks=0, jpeg=0)


class TestRandomViews:
    views = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    index = torch.arange(8) + 100

    def test_a_view_depends_on_seed_epoch_and_index_alone(self):
        draw = RandomViews()
        whole = draw(self.views, self.index, seed=1, epoch=2)
        part = draw(self.views[3:5], self.index[3:5], seed=1, epoch=2)
        assert torch.equal(whole[3:5], part)
        turned = draw(self.views.flip(0), self.index.flip(0), seed=1, epoch=2)
        assert torch.equal(whole, turned.flip(0))
        for other in (dict(seed=2, epoch=2), dict(seed=1, epoch=3)):
            assert not torch.equal(whole, draw(self.views, self.index, **other))

    def test_images_of_one_batch_get_different_parameters(self):
        same = self.views[:1].expand(8, 1, 32, 32)
        drawn = RandomViews()(same, self.index, seed=0, epoch=0)
        assert len({view.numpy().tobytes() for view in drawn}) == 8

    def test_global_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        RandomViews()(self.views, self.index, seed=0, epoch=0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_ranges_of_nothing_change_nothing(self):
        still = RandomViews(rotation=0, scale=(1, 1), translation=0, flip=0, contrast=(1, 1), gamma=1)
        change = still(self.views, self.index, seed=0, epoch=0).int() - self.views.int()
        assert change.abs().max() <= 1  # rounding

    def test_flip_mirrors_left_and_right(self):
        mirror = RandomViews(rotation=0, scale=(1, 1), translation=0, flip=1, contrast=(1, 1), gamma=1)
        change = mirror(self.views, self.index, seed=0, epoch=0).int() - self.views.flip(-1).int()
        assert change.abs().max() <= 1

    def test_brighter_gamma_never_reorders_intensities(self):
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        contrast_only = RandomViews(rotation=0, scale=(1, 1), translation=0, flip=0)
        drawn = contrast_only(ramp, torch.tensor([5]), seed=0, epoch=0).flatten().int()
        assert (drawn[1:] >= drawn[:-1]).all()

    def test_some_views_keep_every_pixel_and_the_others_their_sharpness(self):
        """Views smoother than the slices that a model is tested on cost it points."""
        draw = np.random.default_rng(0)
        noise = torch.from_numpy(draw.integers(0, 256, (64, 1, 48, 48), dtype=np.uint8))
        views = RandomViews(flip=0, scale=(1, 1), contrast=(1, 1), gamma=1)(noise, torch.arange(64), seed=0, epoch=0)
        kept = (views == noise).flatten(1).all(1)
        assert 0.1 < kept.float().mean() < 0.5
        assert (RandomViews(moved=0, contrast=(1, 1), gamma=1, flip=1)(noise, torch.arange(64), seed=0, epoch=0)
                == noise.flip(-1)).all()  # fmt: skip

        smooth = torch.nn.functional.avg_pool2d(noise.float(), 3, stride=1, padding=1).to(torch.uint8)
        moved = RandomViews(flip=0, scale=(1, 1), contrast=(1, 1), gamma=1, moved=1)

        def roughness(images: torch.Tensor) -> float:
            inside = images.float()[..., 12:-12, 12:-12]
            return inside.diff(dim=-1).abs().mean().item()

        assert roughness(moved(smooth, torch.arange(64), seed=0, epoch=0)) > 0.9 * roughness(smooth)


class TestRobustViews:
    index = torch.arange(12) + 7

    def test_a_view_depends_on_seed_epoch_and_index_alone(self):
        views = torch.randint(0, 256, (12, 1, 48, 48), dtype=torch.uint8)
        draw = VIEW_STYLES["robust"]
        whole = draw(views, self.index, seed=1, epoch=2)
        assert torch.equal(whole[3:5], draw(views[3:5], self.index[3:5], seed=1, epoch=2))
        assert torch.equal(whole, draw(views.flip(0), self.index.flip(0), seed=1, epoch=2).flip(0))
        assert not torch.equal(whole, draw(views, self.index, seed=1, epoch=3))

    def test_plain_views_are_the_same_with_and_without_the_new_options(self):
        views = torch.randint(0, 256, (12, 1, 48, 48), dtype=torch.uint8)
        same = RandomViews(aspect=0.0, appearance=RandomAppearance(**NOTHING))
        plain = RandomViews()(views, self.index, seed=0, epoch=0)
        assert torch.equal(same(views, self.index, seed=0, epoch=0), plain)

    @pytest.mark.parametrize("change", ["tone", "shading", "sharpness", "coarse", "noise", "marks", "jpeg"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_each_change_changes_and_keeps_the_range(self, change, channels):
        smooth = torch.nn.functional.interpolate(torch.rand(12, channels, 6, 6), size=96, mode="bilinear")
        views = ((0.8 * smooth + 0.2 * torch.rand(12, channels, 96, 96)) * 255).to(torch.uint8)
        out = RandomAppearance(**{**NOTHING, change: 1.0})(views, self.index, seed=0, epoch=0)
        assert out.shape == views.shape and out.dtype == torch.uint8
        # a mark that would fall on the middle is not drawn
        assert sum(not torch.equal(after, before) for after, before in zip(out, views, strict=True)) > 8
        # the picture is still there
        pairs = zip(out.float().flatten(1), views.float().flatten(1), strict=True)
        assert min(torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs) > 0.6

    def test_a_tone_curve_never_reorders_greys(self):
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(12, 1, 16, 16)
        out = RandomAppearance(**{**NOTHING, "tone": 1.0})(ramp, self.index, seed=0, epoch=0).flatten(1).int()
        assert (out.diff(dim=1) >= 0).all()

    def test_a_share_of_the_views_keeps_its_look(self):
        views = torch.randint(0, 256, (64, 1, 48, 48), dtype=torch.uint8)
        changes = {**NOTHING, "noise": 1.0, "shading": 1.0, "applied": 0.5}
        out = RandomAppearance(**changes)(views, torch.arange(64), seed=0, epoch=0)
        assert 0.3 < (out == views).flatten(1).all(1).float().mean() < 0.7

    def test_another_sequence_reorders_greys_and_keeps_black(self):
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(12, 1, 16, 16)
        out = RandomAppearance(**{**NOTHING, "sequence": 1.0})(ramp, self.index, seed=0, epoch=0).flatten(1).int()
        assert (out[:, 0] == 0).all()
        assert (out.diff(dim=1) < 0).any(1).float().mean() > 0.8  # a rising curve is drawn now and then as well

    def test_rician_noise_brightens_the_background(self):
        black = torch.zeros(12, 1, 48, 48, dtype=torch.uint8)
        out = RandomAppearance(**{**NOTHING, "noise": 1.0})(black, self.index, seed=0, epoch=0)
        assert out.float().mean() > 1


def test_views_that_are_not_moved_keep_their_pixels_whatever_their_neighbours_do():
    draw = torch.Generator().manual_seed(5)
    views = torch.randint(0, 256, (40, 1, 24, 24), dtype=torch.uint8, generator=draw)
    before, index = views.clone(), np.arange(40)
    still = RandomViews(moved=0.0, contrast=(1.0, 1.0), gamma=1.0)
    some = RandomViews(moved=0.5, contrast=(1.0, 1.0), gamma=1.0)
    alone, among = still(views, index, seed=1, epoch=2), some(views, index, seed=1, epoch=2)
    kept = [torch.equal(one, view) for one, view in zip(alone, views, strict=True)]
    turned = [torch.equal(one, view.flip(-1)) for one, view in zip(alone, views, strict=True)]
    assert all(a != b for a, b in zip(kept, turned, strict=True)) and 10 < sum(kept) < 30
    same = sum(torch.equal(one, other) for one, other in zip(alone, among, strict=True))
    assert 10 < same < 30
    assert torch.equal(views, before)


def test_moved_views_are_those_of_kornias_warp():
    draw = torch.Generator().manual_seed(6)
    coarse = torch.rand(8, 1, 6, 8, generator=draw)
    views = functional.interpolate(coarse, (30, 40), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    moving = RandomViews(moved=1.0, contrast=(1.0, 1.0), gamma=1.0)
    keys = image_keys(3, 1, np.arange(8))
    drawn = torch.from_numpy(np.stack([np.random.default_rng(key).random(9) for key in keys]).astype(np.float32))
    zoom = 0.8 + 0.4 * drawn[:, :1] * torch.ones(1, 2)
    zoom[:, 0] *= torch.where(drawn[:, 1] < 0.5, -1.0, 1.0)
    shift = (2 * drawn[:, 2:4] - 1) * torch.tensor([40, 30]) * 0.08
    centre = torch.tensor([19.5, 14.5]).expand(8, 2)
    moves = get_affine_matrix2d(shift, centre, zoom, (2 * drawn[:, 4] - 1) * 20)[:, :2]
    expected = warp_affine(views.float(), moves, (30, 40), mode="bicubic").clamp(0, 255).round()
    found = moving(views, np.arange(8), seed=3, epoch=1).float()
    assert (found - expected).abs().max() <= 1 and (found != expected).float().mean() < 0.01


def test_the_sampling_grid_is_torchs():
    sources = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = functional.affine_grid(sources, (4, 1, 20, 31), align_corners=True)
    torch.testing.assert_close(_sampling_grid(sources, 20, 31), expected, rtol=0, atol=1e-6)
