"""One published slice: a MATLAB v7.3 file (HDF5 behind a 512-byte user block) in, a checked `Slice` out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import h5py
import numpy as np

from hf_kdmri.data.bounded_hdf5 import chunk_shape, read_bounded, refuse_newer_object, root_address

LABEL_NAMES = ("meningioma", "glioma", "pituitary")  # the file's labels 1, 2, 3 are our 0, 1, 2
MAX_SIDE = 4096  # pixels; a file that claims more would only exhaust memory (published: 512, a few 256)
_MAX_PID_LENGTH = 64
_MAX_BORDER_VALUES = 100_000
_DOWNLOAD_AGAIN = "replace it with the published file (download the archive that holds it again)"


class SliceFileError(ValueError):
    """A `.mat` file that is no valid slice; the message names the file, what is wrong and the way out."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One MRI slice in image coordinates: row 0 is the top line, column 0 the left one.

    Attributes:
        number: Slice number, the `<n>` of `<n>.mat`.
        label: Index into `LABEL_NAMES`.
        pid: Patient id as published, e.g. `"100360"` or `"MR040240B"`.
        image: (H, W) raw intensities, arbitrary scanner units; the file's integer type, or float32.
        mask: (H, W) bool, true inside the tumour.
        border: (K, 2) float64, the tumour's outline as x (column), y (row) in pixels.
        raw_min: Smallest raw intensity.
        raw_max: Largest raw intensity.
    """

    number: int
    label: int
    pid: str
    image: np.ndarray
    mask: np.ndarray
    border: np.ndarray
    raw_min: float
    raw_max: float


def slice_number(name: str) -> int:
    """Return the slice number that a file name states.

    Args:
        name: File name or path; what counts is its last part, `<n>.mat`.

    Raises:
        SliceFileError: the name is not a positive number followed by `.mat`.

    Example:
        >>> slice_number("brainTumorDataPublic_1-766/12.mat")
        12
    """
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.stem
    if path.suffix.lower() != ".mat" or not (stem.isascii() and stem.isdigit()) or not 0 < int(stem[:12]) < 2**31:
        raise SliceFileError(
            f"{name}: a slice's file is named <number>.mat with a number from 1 on; rename or remove it"
        )
    return int(stem)


def read_slice(source: bytes | BinaryIO | str | Path, name: str | None = None) -> Slice:
    """Read and check one slice.

    Args:
        source: The file's bytes, an open binary file, or a path.
        name: What to call the file in errors; its last part gives the slice number. Default: the path or the
            file object's `name`.

    Returns:
        The slice, transposed from MATLAB's column-major storage to image coordinates.

    Raises:
        SliceFileError: not an HDF5 file, a field lacking or of the wrong type or shape, a label outside 1-3,
            non-finite pixels, image and mask of different shapes, or data that lie outside the file.
    """
    name = _name_of(source, name)
    number = slice_number(name)
    with _Fields(source, name) as fields:
        label, pid = fields.label(), fields.pid()
        image = fields.image()
        mask = fields.pixels("tumorMask")
        border = fields.border()
    if image.shape != mask.shape:
        raise SliceFileError(
            f"{name}: image is {image.shape} but tumorMask is {mask.shape} (rows, columns); {_DOWNLOAD_AGAIN}"
        )
    return Slice(number, label, pid, image, mask != 0, border, float(image.min()), float(image.max()))


def read_label_and_pid(source: bytes | BinaryIO | str | Path, name: str | None = None) -> tuple[int, str]:
    """Read only what splitting needs: the label's index into `LABEL_NAMES` and the patient id.

    Args and errors are those of `read_slice`; pixels are neither decompressed nor checked.
    """
    name = _name_of(source, name)
    with _Fields(source, name) as fields:
        return fields.label(), fields.pid()


def _name_of(source: bytes | BinaryIO | str | Path, name: str | None) -> str:
    if name is None:
        name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", None)
    if not isinstance(name, str):
        raise TypeError("name= is needed when the source is bytes or a file without a name: errors must name the file")
    return name


def _bytes_of(source: bytes | BinaryIO | str | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    return Path(source).read_bytes() if isinstance(source, (str, Path)) else source.read()


class _Fields:
    """The struct `cjdata` of one open file; every field is checked as it is read.

    It speaks HDF5's own functions through h5py's low-level interface, whose objects cost a third of the others'.
    """

    def __init__(self, source: bytes | BinaryIO | str | Path, name: str) -> None:
        self._name = name
        self._bytes = _bytes_of(source)
        self._file: h5py.h5f.FileID | None = None
        self._struct: h5py.h5g.GroupID | h5py.h5d.DatasetID | None = None

    def __enter__(self) -> _Fields:
        try:
            if not self._bytes:
                raise ValueError("the file is empty")
            self._base, root = root_address(self._bytes)
            refuse_newer_object(self._bytes, self._base, root)
            self._file = h5py.h5f.open_file_image(self._bytes)  # read-only
        except Exception as error:  # h5py documents no list: OSError, RuntimeError and others were seen
            raise SliceFileError(
                f"{self._name}: not a readable HDF5 (MATLAB v7.3) file ({_first_line(error)}); {_DOWNLOAD_AGAIN}"
            ) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def label(self) -> int:
        """The label's index, 0-2."""
        value = self._numbers("label", max_values=1)
        if value.size != 1 or float(value.flat[0]) not in (1.0, 2.0, 3.0):
            shown = value.flat[0] if value.size else "empty"
            raise SliceFileError(
                f"{self._name}: label is {shown}, expected 1 (meningioma), 2 (glioma) or 3 (pituitary); "
                f"{_DOWNLOAD_AGAIN}"
            )
        return int(value.flat[0]) - 1

    def pid(self) -> str:
        """The patient id, from character codes."""
        codes = self._numbers("PID", max_values=_MAX_PID_LENGTH).ravel()
        if codes.dtype.kind not in "iu" or not all(32 <= code < 127 for code in codes.tolist()):
            raise SliceFileError(f"{self._name}: PID holds no printable character codes; {_DOWNLOAD_AGAIN}")
        pid = "".join(map(chr, codes.tolist())).strip()
        if not pid:
            raise SliceFileError(f"{self._name}: PID is empty; {_DOWNLOAD_AGAIN}")
        return pid

    def image(self) -> np.ndarray:
        """Raw intensities (H, W); floats become float32."""
        pixels = self.pixels("image")
        if pixels.dtype.kind != "f":
            return pixels
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise SliceFileError(
                f"{self._name}: image has NaN or infinite pixels ({np.count_nonzero(~np.isfinite(pixels))} of "
                f"{pixels.size}); {_DOWNLOAD_AGAIN}, or repair those pixels before writing your own"
            )
        return pixels

    def pixels(self, field: str) -> np.ndarray:
        """A 2-D field in image coordinates (H, W), contiguous."""
        value = self._numbers(field, max_values=MAX_SIDE**2)
        if value.ndim != 2 or value.size == 0:
            raise SliceFileError(
                f"{self._name}: {field} has shape {value.shape}, expected two sides > 0; {_DOWNLOAD_AGAIN}"
            )
        return np.ascontiguousarray(value.T)  # MATLAB stores columns first, so h5py shows the transpose

    def border(self) -> np.ndarray:
        """The outline as (K, 2) x, y in pixels."""
        value = self._numbers("tumorBorder", max_values=_MAX_BORDER_VALUES).ravel().astype(np.float64)
        if value.size < 6 or value.size % 2 or not np.isfinite(value).all():
            raise SliceFileError(
                f"{self._name}: tumorBorder has {value.size} values, expected finite x1, y1, x2, y2, ... of at least "
                f"3 points; {_DOWNLOAD_AGAIN}"
            )
        return value.reshape(-1, 2)

    def _numbers(self, field: str, max_values: int) -> np.ndarray:
        try:
            dataset = self._dataset(field)
            properties = dataset.get_create_plist()
            if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
                raise SliceFileError(
                    f"{self._name}: {field} is stored outside this file, which is refused; {_DOWNLOAD_AGAIN}"
                )
            shape, dtype, chunks = dataset.shape, dataset.dtype, chunk_shape(properties)
            if dtype.kind not in "iufb":
                raise SliceFileError(
                    f"{self._name}: {field} holds {dtype} (text, references or records), expected numbers; "
                    f"{_DOWNLOAD_AGAIN}"
                )
            # a chunk is decompressed whole, so its size counts too
            if (
                shape is None  # a null data space
                or math.prod(shape) > max_values
                or math.prod(chunks or (0,)) > max(max_values, 2**16)
            ):
                raise SliceFileError(
                    f"{self._name}: {field} has shape {shape} in chunks of {chunks}, more than a slice "
                    f"can have ({max_values} values); {_DOWNLOAD_AGAIN}"
                )
            if h5py.h5a.exists(dataset, b"MATLAB_empty"):  # MATLAB stores an empty array as its shape
                return np.zeros((0, 0), dtype)
            value = read_bounded(dataset, properties, shape, dtype)
            return value.astype(np.uint8 if value.dtype.kind == "b" else value.dtype.newbyteorder("="), copy=False)
        except SliceFileError:
            raise
        except Exception as error:  # a damaged file can fail anywhere inside HDF5, with whatever h5py makes of it
            raise SliceFileError(
                f"{self._name}: {field} cannot be read ({_first_line(error)}); {_DOWNLOAD_AGAIN}"
            ) from error

    def _dataset(self, field: str) -> h5py.h5d.DatasetID:
        if self._struct is None:
            assert self._file is not None
            self._struct = self._follow(h5py.h5g.open(self._file, b"/"), "cjdata", field)
        node = self._follow(self._struct, field, field)
        if not isinstance(node, h5py.h5d.DatasetID):
            raise SliceFileError(f"{self._name}: cjdata/{field} is a group, expected numbers; {_DOWNLOAD_AGAIN}")
        return node

    def _follow(
        self, node: h5py.h5g.GroupID | h5py.h5d.DatasetID, step: str, field: str
    ) -> h5py.h5g.GroupID | h5py.h5d.DatasetID:
        name = step.encode()
        if not isinstance(node, h5py.h5g.GroupID) or not node.links.exists(name):
            raise SliceFileError(
                f"{self._name}: field cjdata/{field} is lacking; {_DOWNLOAD_AGAIN} (cjdata needs label, PID, image, "
                f"tumorBorder and tumorMask)"
            )
        link = node.links.get_info(name)
        if link.type != h5py.h5l.TYPE_HARD:
            raise SliceFileError(
                f"{self._name}: {step} is a soft or external link; links are refused because they can point at other "
                f"files; {_DOWNLOAD_AGAIN}"
            )
        refuse_newer_object(self._bytes, self._base, link.u)
        return h5py.h5o.open(node, name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
