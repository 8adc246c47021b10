"""One published `.mat` file: orientation, refusals, windowing, damage."""

from __future__ import annotations

import io
import random
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from hf_kdmri.data.mat_file import (
    LABEL_NAMES,
    SliceFileError,
    read_label_and_pid,
    read_slice,
    slice_number,
    window_to_uint8,
)
from tests.data_fixtures import BORDER, SIZE, asymmetric_image, edited_mat, good_mat, with_field


def test_fields_arrive_in_image_coordinates():
    item = read_slice(good_mat(), "a/b/17.mat")
    assert (item.number, LABEL_NAMES[item.label], item.pid) == (17, "glioma", "MR900001B")
    np.testing.assert_array_equal(item.image, asymmetric_image())  # not its transpose
    assert item.image.dtype == np.int16 and item.image.flags.c_contiguous
    assert (item.raw_min, item.raw_max) == (item.image.min(), item.image.max())
    np.testing.assert_array_equal(item.border, BORDER)


def test_mask_lies_where_the_border_says():
    mask = read_slice(good_mat(), "1.mat").mask
    canvas = Image.new("1", (SIZE, SIZE))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in BORDER], fill=1, outline=1)
    drawn = np.asarray(canvas)
    assert mask.dtype == bool
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.95
    assert (mask.T & drawn).sum() / (mask.T | drawn).sum() < 0.5  # the test can tell


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "float32", "float64", ">i2", "int32"])
def test_image_types(dtype):
    image = (asymmetric_image() % 200).astype(dtype)
    read = read_slice(good_mat(image=image), "1.mat").image
    np.testing.assert_array_equal(read, image)
    assert read.dtype.isnative
    assert read.dtype == np.float32 if dtype.startswith("float") else read.dtype.kind in "iu"


def test_sources(tmp_path):
    path = tmp_path / "3.mat"
    path.write_bytes(good_mat())
    with open(path, "rb") as file:
        from_file = read_slice(file)
    for other in (read_slice(path), read_slice(io.BytesIO(good_mat()), "3.mat")):
        assert other.number == from_file.number == 3
        np.testing.assert_array_equal(other.image, from_file.image)
    assert read_label_and_pid(path) == (1, "MR900001B")
    with pytest.raises(TypeError, match="name="):
        read_slice(good_mat())


def _references(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (2, 2), dtype=h5py.ref_dtype)


def _external_link(group: h5py.Group) -> None:
    del group["image"]
    group["image"] = h5py.ExternalLink("/etc/other.h5", "/x")


def _soft_link(group: h5py.Group) -> None:
    del group["image"]
    group["image"] = h5py.SoftLink("/cjdata/tumorMask")


def _external_storage(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (SIZE, SIZE), "i2", external=[("/etc/passwd", 0, 2 * SIZE * SIZE)])


def _virtual(group: h5py.Group) -> None:
    del group["image"]
    layout = h5py.VirtualLayout((SIZE, SIZE), "i2")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (SIZE, SIZE))
    group.create_virtual_dataset("image", layout)


def _huge(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (10**6, 10**6), "i2", chunks=(64, 64))  # takes no space in the file


def _huge_chunk(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (4, 4), "i2", chunks=(2**13, 2**13), maxshape=(None, None), compression="gzip")


def _matlab_empty(group: h5py.Group) -> None:
    group["image"].attrs["MATLAB_empty"] = np.uint8(1)


def _nan(value: float) -> bytes:
    image = asymmetric_image().astype(np.float32)
    image[3, 4] = value
    return good_mat(image=image)


BAD = {
    "not HDF5": (b"PK\x03\x04" + bytes(600), "not a readable HDF5"),
    "empty file": (b"", "not a readable HDF5"),
    "cut short": (good_mat()[:1500], "not a readable HDF5|cannot be read"),
    **{
        f"no {name}": (edited_mat(lambda group, name=name: group.__delitem__(name)), f"cjdata/{name} is lacking")
        for name in ("label", "PID", "image", "tumorBorder", "tumorMask")
    },
    "label 4": (with_field("label", [[4.0]]), "label is 4.0, expected 1"),
    "label 0": (with_field("label", [[0.0]]), "label is 0.0"),
    "label 1.5": (with_field("label", [[1.5]]), "label is 1.5"),
    "label NaN": (with_field("label", [[np.nan]]), "label is nan"),
    "two labels": (with_field("label", [[1.0, 2.0]]), "label has shape"),
    "NaN": (_nan(np.nan), "NaN or infinite pixels"),
    "infinite": (_nan(np.inf), "NaN or infinite pixels"),
    "other mask": (with_field("tumorMask", np.zeros((SIZE, SIZE - 1), np.uint8)), r"image is \(40, 40\) but tumorMask"),
    "3-D": (with_field("image", np.zeros((3, 4, 5), np.int16)), "image has shape"),
    "empty": (with_field("image", np.zeros((0, 4), np.int16)), "image has shape"),
    "MATLAB empty": (edited_mat(_matlab_empty), "image has shape"),
    "text": (with_field("image", np.array([[b"ab"]], dtype="S2")), "expected numbers"),
    "strings": (with_field("image", ["a"], dtype=h5py.string_dtype()), "expected numbers"),
    "references": (edited_mat(_references), "expected numbers"),
    "complex": (with_field("image", np.zeros((4, 4), np.complex64)), "expected numbers"),
    "null": (with_field("image", h5py.Empty("i2")), "image has shape None"),
    "group": (edited_mat(lambda group: (group.__delitem__("image"), group.create_group("image"))), "is a group"),
    "external link": (edited_mat(_external_link), "link"),
    "soft link": (edited_mat(_soft_link), "link"),
    "external storage": (edited_mat(_external_storage), "outside this file"),
    "virtual": (edited_mat(_virtual), "outside this file"),
    "huge": (edited_mat(_huge), "more than a slice can have"),
    "huge chunk": (edited_mat(_huge_chunk), "more than a slice can have"),
    "odd border": (with_field("tumorBorder", np.arange(7.0)), "tumorBorder has 7 values"),
    "NaN border": (with_field("tumorBorder", np.full(8, np.nan)), "tumorBorder"),
    "PID floats": (with_field("PID", [[49.0], [50.0]]), "character codes"),
    "PID control": (with_field("PID", np.array([[1], [2]], np.uint16)), "character codes"),
    "PID empty": (with_field("PID", np.array([[32], [32]], np.uint16)), "PID is empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_by_name(kind):
    data, message = BAD[kind]
    with pytest.raises(SliceFileError, match=message) as refusal:
        read_slice(data, "some/folder/12.mat")
    assert "some/folder/12.mat" in str(refusal.value)
    assert "download the archive" in str(refusal.value)  # the way out
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("name", ["x.mat", "1.txt", "0.mat", "-1.mat", "1.5.mat", "99999999999.mat", "²2.mat"])
def test_names_that_are_no_slice(name):
    with pytest.raises(SliceFileError, match=r"named <number>\.mat"):
        slice_number(name)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_constant_image_becomes_zeros(dtype):
    image, low, high = window_to_uint8(np.full((5, 7), 300, dtype))
    assert image.dtype == np.uint8 and image.shape == (5, 7) and not image.any()
    assert low == high == 300


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-32768, 32767), min_size=2, max_size=60), st.floats(0, 49), st.floats(51, 100), st.booleans()
)
def test_window_matches_float_percentiles(values, lower, upper, as_float):
    image = np.array([values], dtype=np.float32 if as_float else np.int16)
    window, low, high = window_to_uint8(image, (lower, upper))
    expected = np.percentile(image.astype(np.float64), (lower, upper))
    np.testing.assert_allclose([low, high], expected, rtol=1e-9, atol=1e-6)
    order = np.argsort(image[0], kind="stable")
    assert (np.diff(window[0][order].astype(int)) >= 0).all()  # monotone
    if high > low:
        assert window[image <= low].sum() == 0 and (window[image >= high] == 255).all()


@pytest.mark.parametrize("percentiles", [(50, 50), (-1, 99), (1, 101), (99, 1)])
def test_window_refuses_percentiles(percentiles):
    with pytest.raises(ValueError, match="percentiles"):
        window_to_uint8(asymmetric_image(), percentiles)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, or double some bytes, mostly in the metadata at the start."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        position = (
            rng.randrange(512, len(changed)) if rng.random() < 0.5 else rng.randrange(512, min(len(changed), 4000))
        )
        kind = rng.random()
        if kind < 0.4:
            changed[position] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            changed[position] = rng.choice([0, 1, 127, 128, 255])
        elif kind < 0.8:
            changed[position : position + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x00\x00\x00\x00\x00\x00\x00\x01"])
        elif kind < 0.9:
            del changed[position : position + rng.randrange(1, 64)]
        else:
            changed[position:position] = changed[position : position + rng.randrange(1, 64)]
        if len(changed) <= 600:
            break
    return bytes(changed)


def test_damaged_files_parse_or_are_refused():
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        data = mutated(good_mat(), rng)
        start = time.perf_counter()
        try:
            item = read_slice(data, "1.mat")
        except SliceFileError as error:
            refused += 1
            assert "1.mat" in str(error)
        else:
            assert item.image.shape == item.mask.shape and item.label in (0, 1, 2)
        assert time.perf_counter() - start < 2
    assert refused > 20


@pytest.mark.parametrize("percentiles", [(0, 100), (0.1, 99.9), (25, 60)])
def test_window_of_integers_equals_that_of_floats(percentiles: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    for low, high, dtype in ((-32768, 32767, np.int16), (0, 4000, np.int16), (5, 5, np.uint8), (0, 2**40, np.int64)):
        image = rng.integers(low, high, (40, 30), dtype=dtype, endpoint=True)
        as_integers = window_to_uint8(image, percentiles)
        as_floats = window_to_uint8(image.astype(np.float64), percentiles)
        assert np.array_equal(as_integers[0], as_floats[0])
        assert as_integers[1:] == pytest.approx(as_floats[1:])
        assert as_integers[1:] == pytest.approx(tuple(np.percentile(image.astype(np.float64), percentiles)))
