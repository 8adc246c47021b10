"""One published `.mat` file: orientation, refusals, windowing, damage."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import time
import tracemalloc
import zlib
from collections import Counter

import h5py
import numpy as np
import pytest
from hdf5_checksums import lookup3, seal
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import READABLE, USER_BLOCK, hdf5_blocks, mutated_mat, valid_mats
from PIL import Image, ImageDraw

from hf_kdmri.data.bounded_hdf5 import refuse_newer_object, root_address
from hf_kdmri.data.mat_file import (
    LABEL_NAMES,
    SliceFileError,
    read_label_and_pid,
    read_slice,
    slice_number,
)
from hf_kdmri.data.pixels import window_to_uint8
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


def _group(group: h5py.Group) -> None:
    del group["image"]
    group.create_group("image")


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


def _many_chunks(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (4096, 4096), "i2", chunks=(1, 1))  # none of them written


def _lacking_chunk(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (SIZE, SIZE), "i2", chunks=(SIZE, SIZE // 2))[:, SIZE // 2 :] = 1


def _endless_but_empty(group: h5py.Group) -> None:
    del group["image"]
    group.create_dataset("image", (0, 2**60), "i2", chunks=(1, 1), maxshape=(None, None))


def _matlab_empty(group: h5py.Group) -> None:
    group["image"].attrs["MATLAB_empty"] = np.uint8(1)


def _nan(value: float) -> bytes:
    image = asymmetric_image().astype(np.float32)
    image[3, 4] = value
    return good_mat(image=image)


def _linked_struct(link: h5py.ExternalLink | h5py.SoftLink | None) -> bytes:
    """A file whose `cjdata` is not a group of its own."""
    buffer = io.BytesIO(good_mat())
    with h5py.File(buffer, "r+") as file:
        file.move("cjdata", "elsewhere")
        if link is not None:
            file["cjdata"] = link
    return buffer.getvalue()


def _without(field: str) -> bytes:
    return edited_mat(lambda group: group.__delitem__(field))


def _of_type(field: str, dtype: object) -> bytes:
    """A file with one field of another type and the right shape."""

    def edit(group: h5py.Group) -> None:
        shape = group[field].shape
        del group[field]
        group.create_dataset(field, shape, dtype)

    return edited_mat(edit)


NOT_NUMBERS = {
    "reference": h5py.ref_dtype,
    "region reference": h5py.regionref_dtype,
    "variable length": h5py.vlen_dtype("i4"),
    "text": h5py.string_dtype(),
    "opaque": np.dtype("V8"),
    "record": np.dtype([("a", "i4"), ("b", "f8")]),
    "date": h5py.opaque_dtype(np.dtype("M8[s]")),
}
BAD = {
    "not HDF5": (b"PK\x03\x04" + bytes(600), "not a readable HDF5"),
    "empty file": (b"", "not a readable HDF5"),
    "cut short": (good_mat()[:1500], "not a readable HDF5|cannot be read"),
    **{
        f"no {name}": (_without(name), f"cjdata/{name} is lacking")
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
    **{
        f"{field} of {name}": (_of_type(field, dtype), f"{field} (holds .*expected numbers|cannot be read)")
        for field in ("label", "PID", "image", "tumorBorder", "tumorMask")
        for name, dtype in NOT_NUMBERS.items()
    },
    "arrays": (_of_type("image", np.dtype(("i2", (3,)))), "image (holds .*expected numbers|cannot be read)"),
    "lzf": (with_field("image", asymmetric_image(), compression="lzf"), "expected gzip"),
    "no struct": (_linked_struct(None), "cjdata/label is lacking"),
    "struct in another file": (_linked_struct(h5py.ExternalLink("/etc/other.h5", "/cjdata")), "external link"),
    "struct by soft link": (_linked_struct(h5py.SoftLink("/elsewhere")), "external link"),
    "null": (with_field("image", h5py.Empty("i2")), "image has shape None"),
    "group": (edited_mat(_group), "is a group"),
    "external link": (edited_mat(_external_link), "link"),
    "soft link": (edited_mat(_soft_link), "link"),
    "external storage": (edited_mat(_external_storage), "outside this file"),
    "virtual": (edited_mat(_virtual), "outside this file"),
    "huge": (edited_mat(_huge), "more than a slice can have"),
    "huge chunk": (edited_mat(_huge_chunk), "more than a slice can have"),
    "many chunks": (edited_mat(_many_chunks), "16777216 chunks .*at most 16384"),
    "lacking chunk": (edited_mat(_lacking_chunk), "image cannot be read"),
    "endless but empty": (edited_mat(_endless_but_empty), "chunks .*at most 16384"),
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


def test_damaged_files_are_read_or_refused():
    """`benchmarks/fuzz_readers.py` does the same at length, in processes whose memory it watches."""
    verdicts = Counter()
    for number in range(400):
        data = mutated_mat(random.Random(f"test {number}"))
        start = time.process_time()
        try:
            item = read_slice(data, "1.mat")
        except SliceFileError as error:
            verdicts["refused"] += 1
            assert "1.mat" in str(error)
        else:
            verdicts["valid"] += 1
            assert item.image.shape == item.mask.shape and item.label in (0, 1, 2)
            assert read_label_and_pid(data, "1.mat") == (item.label, item.pid)
        assert time.process_time() - start < 2
    assert verdicts["refused"] > 200 and verdicts["valid"] > 20


def test_every_sample_of_the_fuzzer_is_what_it_says():
    for number, data in enumerate(valid_mats()):
        if number < READABLE:
            assert read_slice(data, "1.mat").pid in ("MR900001B", "90001")
            continue
        with pytest.raises(SliceFileError, match=r"filters \[1, 3\]" if number == 4 else "newer HDF5 format"):
            read_slice(data, "1.mat")


def test_files_of_newer_formats_are_not_opened():
    valid = valid_mats()[0]
    assert root_address(valid) == (USER_BLOCK, 96)
    for offset, value in ((8, 2), (13, 4), (24, 1)):  # version, size of addresses, base address
        data = bytearray(valid)
        data[USER_BLOCK + offset] = value
        with pytest.raises(SliceFileError, match="newer HDF5 format"):
            read_slice(bytes(data), "1.mat")


def test_checksum_is_that_of_hdf5():
    assert lookup3(b"Four score and seven years ago", np.array([30, 4])).tolist()[0] == 0x17770551  # Jenkins' example
    kinds = set()
    for data in valid_mats():
        for block in hdf5_blocks(data):
            kinds.add(data[block.start : block.start + 4])
            place = block.start + block.checksum
            wiped = bytearray(data)
            wiped[place : place + 4] = bytes(4)
            seal(wiped, block)
            assert wiped == data
    every = b"OHDR OCHK FRHP FHDB FHIB FSHD FSSE BTHD BTLF BTIN EAHD EAIB EADB FAHD FADB".split()
    assert kinds == {b"\x89HDF", *every}


def test_damage_behind_a_checksum_reaches_hdf5():
    valid = valid_mats()[5]
    data = bytearray(valid.replace(b"cjdata", b"cjdatb"))
    with pytest.raises(KeyError, match="incorrect metadata checksum"), h5py.File(io.BytesIO(data)) as file:
        file["cjdata"]
    for block in hdf5_blocks(valid):
        seal(data, block)
    with h5py.File(io.BytesIO(data)) as file:
        assert list(file) == ["cjdatb"]


# Damage in the last block of a kind in a sample, at an offset: HDF5 2.0 crashed, hung or asked for 1.6 GB
HOSTILE = {
    "extensible array of 2^63 chunks": (8, b"EAHD", 50, b"\x80\x00\x00"),
    "chunks in a B-tree of records without size": (9, b"BTHD", 9, b"\x01\x00"),
    "more chunks than a fixed array has": (7, b"OHDR", 45, b"\x08"),
    "links in a B-tree of records without size": (5, b"BTHD", 9, b"\x01\x00"),
    "links in a heap of 1.6 GB": (5, b"FRHP", 112, b"\x60\x01\x00\x63"),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_newer_structure_that_lies(damage):
    number, kind, offset, content = HOSTILE[damage]
    valid = valid_mats()[number]
    block = [block for block in hdf5_blocks(valid) if valid[block.start : block.start + 4] == kind][-1]
    data = bytearray(valid)
    data[block.start + offset : block.start + offset + len(content)] = content
    seal(data, block)
    with pytest.raises(SliceFileError, match="newer HDF5 format"):
        read_slice(bytes(data), "1.mat")


def _message(kind: int, content: bytes, flags: int = 0) -> bytes:
    return struct.pack("<HHB3x", kind, len(content), flags) + content


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (_message(8, b"\x03" + bytes(7)), None),
        (_message(1, bytes(8)) + _message(8, b"\x04" + bytes(7)), "newer"),
        (_message(2, bytes(24)), "newer"),  # links in a fractal heap
        (_message(8, b"\x03" + bytes(7), flags=2), "newer"),  # its content lies elsewhere
        (_message(16, struct.pack("<QQ", 2000, 16)), "newer"),  # goes on at 2000, where version 4 lies
        (_message(16, struct.pack("<QQ", 3000, 24)), "17 pieces"),  # goes on at 3000, which goes on at 3000
        (_message(16, struct.pack("<QQ", 2**60, 24)), "unpack_from"),
        (_message(16, struct.pack("<QQ", 2000, 2**30)), "1073741824 bytes"),
    ],
)
def test_newer_format_is_told_from_the_header(messages, error):
    data = bytearray(4096)
    header = struct.pack("<BxHII4x", 1, 1, 1, len(messages)) + messages
    data[USER_BLOCK + 96 : USER_BLOCK + 96 + len(header)] = header
    data[USER_BLOCK + 2000 : USER_BLOCK + 2016] = _message(8, b"\x04" + bytes(7))
    data[USER_BLOCK + 3000 : USER_BLOCK + 3024] = _message(16, struct.pack("<QQ", 3000, 24))
    with pytest.raises((ValueError, struct.error), match=error) if error else contextlib.nullcontext():
        refuse_newer_object(bytes(data), USER_BLOCK, 96)


def test_header_in_several_pieces():
    def edit(group: h5py.Group) -> None:
        for i in range(30):
            group["image"].attrs[f"note{i}"] = "long enough that the header goes on elsewhere" * 4

    np.testing.assert_array_equal(read_slice(edited_mat(edit), "1.mat").image, asymmetric_image())


def test_chunk_that_inflates_without_end():
    def bomb(group: h5py.Group) -> None:
        del group["image"]
        image = group.create_dataset("image", (SIZE, SIZE), "i2", chunks=(SIZE, SIZE), compression="gzip")
        image.id.write_direct_chunk((0, 0), zlib.compress(bytes(200 * 2**20))[:3500])

    data = edited_mat(bomb)
    assert len(data) < 20_000
    tracemalloc.start()
    with pytest.raises(SliceFileError, match="image cannot be read"):
        read_slice(data, "1.mat")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


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


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_window_of_extreme_integers(dtype: str, end: str) -> None:
    limits = np.iinfo(dtype)
    ramp = np.arange(100, dtype=dtype).reshape(10, 10)
    image = limits.min + ramp if end == "lowest" else limits.max - ramp
    pixels, low, high = window_to_uint8(image.astype(dtype), (0, 100))
    assert (low, high) == (float(image.min()), float(image.max()))
    if np.abs(float(limits.max)) < 2**53:
        above = (ramp if end == "lowest" else 99 - ramp).astype(np.float64)
        np.testing.assert_array_equal(pixels, np.rint(above * 255 / 99).astype(np.uint8))
