"""Which pictures a set may hold, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_kdmri.data.pictures import PictureError, decode_picture, to_8_bit
from hf_kdmri.data.views import prepare_views
from tests.own.sets import NUMBER, load, picture, save_folders


def test_one_colour_picture_among_grey_ones_makes_three_channels(tmp_path: Path):
    images = [picture(n, "L") for n in range(5)] + [picture(5)]
    features = datasets.Features({"image": datasets.Image(), "label": NUMBER})
    dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    views = prepare_views(dataset, 16)
    assert views.view(0).shape == (3, 16, 16) and (views.view(0)[0] == views.view(0)[2]).all()
    assert (views.view(5)[0] != views.view(5)[2]).any()
    assert prepare_views(dataset.select(range(5)), 16).view(0).shape == (1, 16, 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_modes_are_what_pipelines_see(mode: str, tmp_path: Path):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture(3, mode).save(path)
    seen = decode_picture(path.read_bytes())
    assert seen.mode in ("L", "RGB")
    np.testing.assert_array_equal(np.asarray(seen.convert("RGB")), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_windowed_and_not_saturated(dtype: type[np.number], tmp_path: Path):
    ramp = np.linspace(1000, 30000, 64 * 64).reshape(64, 64).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    pixels = np.asarray(decode_picture((tmp_path / "x.tif").read_bytes())).astype(int)
    assert pixels.dtype.kind == "i" and pixels.min() == 0 and pixels.max() == 255
    assert (np.diff(pixels.ravel()) >= 0).all() and len(np.unique(pixels)) == 256


def test_orientation_of_the_camera_is_applied(tmp_path: Path):
    image = picture(1, size=(30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "x.png", exif=exif)
    assert decode_picture((tmp_path / "x.png").read_bytes()).size == (10, 30)


def test_pictures_that_cannot_be_used_say_why(tmp_path: Path):
    picture(0).save(tmp_path / "a.gif", save_all=True, append_images=[picture(1), picture(2)])
    with pytest.raises(PictureError, match="holds 3 frames, expected one"):
        decode_picture((tmp_path / "a.gif").read_bytes())
    with pytest.raises(PictureError, match=r"cannot be read as a picture \(cannot identify image file\); save it"):
        decode_picture(b"no picture")
    with pytest.raises(PictureError, match="not finite"):
        to_8_bit(Image.fromarray(np.full((4, 4), np.nan, np.float32)))


def test_a_set_with_damaged_files_names_them_before_anything_trains(tmp_path: Path):
    root = save_folders(tmp_path / "set")
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"1 of 40 images cannot be used: train row 0 \(.*0\.png\) cannot be read"):
        load(root)


def test_wide_images_are_counted(tmp_path: Path):
    root = save_folders(tmp_path / "set")
    deep = np.random.default_rng(0).integers(0, 4000, (20, 24), dtype=np.uint16)
    Image.fromarray(deep).save(root / "a" / "0.png")
    data = load(root)
    assert data.wide_images == 1 and not data.grey
    assert any("1 image of more than 8 bits is windowed" in note for note in data.notes)
