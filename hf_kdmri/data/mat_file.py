"""One published slice: a MATLAB v7.3 file (HDF5 behind a 512-byte user block) in, a checked `Slice` out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import h5py
import numpy as np

from hf_kdmri.data.bounded_hdf5 import chunk_shape, read_bounded

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


def window_to_uint8(
    image: np.ndarray, percentiles: tuple[float, float] = (0.1, 99.9)
) -> tuple[np.ndarray, float, float]:
    """Map raw intensities to 8 bits, linearly between two percentiles of the slice, clipped outside them.

    Args:
        image: (H, W) finite numbers.
        percentiles: Lower and upper percentile (0-100) that become 0 and 255. Default (0.1, 99.9).

    Returns:
        The (H, W) uint8 image and the raw intensities that became 0 and 255. Where the two percentiles are
        equal (a constant image) all pixels are 0.

    Example:
        >>> image, low, high = window_to_uint8(np.array([[0, 50], [150, 200]]), (0, 100))
        >>> image.tolist(), low, high
        ([[0, 64], [191, 255]], 0.0, 200.0)
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"window percentiles are {percentiles}; expected 0 <= lower < upper <= 100")
    positions = [percentile / 100 * (image.size - 1) for percentile in percentiles]
    ranks = sorted({rank for p in positions for rank in (int(p), min(int(p) + 1, image.size - 1))})
    smallest = image.min()
    steps = int(image.max()) - int(smallest) + 1 if image.dtype.kind in "iu" else 0
    if 0 < steps <= 2**16:  # each intensity is mapped once, not each pixel: 6 times as fast
        levels = np.subtract(image, smallest, dtype=np.intp).ravel()
        ordered = np.searchsorted(np.bincount(levels).cumsum(), ranks, side="right") + int(smallest)
        low, high = _interpolated(positions, dict(zip(ranks, ordered.tolist(), strict=True)))
        table = _stretch(np.arange(int(smallest), int(smallest) + steps), low, high)
        return table[levels].reshape(image.shape), low, high
    partitioned = np.partition(image.ravel(), ranks)
    low, high = _interpolated(positions, {rank: float(partitioned[rank]) for rank in ranks})
    return _stretch(image, low, high), low, high


def _interpolated(positions: list[float], values: dict[int, float]) -> list[float]:
    """`np.percentile` in float64: numpy's own subtracts int16 neighbours, which can overflow."""
    last = max(values)
    return [float(values[int(p)] + (values[min(int(p) + 1, last)] - values[int(p)]) * (p - int(p))) for p in positions]


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((np.clip(values, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


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
            shape, dtype, chunks = dataset.shape, dataset.dtype, chunk_shape(dataset)
            if dtype.kind not in "iufb":
                raise SliceFileError(
                    f"{self._name}: {field} holds {dtype} (text, references or records), expected numbers; "
                    f"{_DOWNLOAD_AGAIN}"
                )
            chunk_values = int(np.prod(chunks or (0,), dtype=object))
            # a chunk is decompressed whole, so its size counts too
            if (
                dataset.get_space().get_simple_extent_type() == h5py.h5s.NULL
                or int(np.prod(shape, dtype=object)) > max_values
                or chunk_values > max(max_values, 2**16)
            ):
                raise SliceFileError(
                    f"{self._name}: {field} has shape {shape} in chunks of {chunks}, more than a slice "
                    f"can have ({max_values} values); {_DOWNLOAD_AGAIN}"
                )
            if h5py.h5a.exists(dataset, b"MATLAB_empty"):  # MATLAB stores an empty array as its shape
                return np.zeros((0, 0), dtype)
            value = read_bounded(dataset, self._bytes)
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
        properties = node.get_create_plist()
        if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
            raise SliceFileError(
                f"{self._name}: {field} is stored outside this file, which is refused; {_DOWNLOAD_AGAIN}"
            )
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
        if node.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise SliceFileError(
                f"{self._name}: {step} is a soft or external link; links are refused because they can point at other "
                f"files; {_DOWNLOAD_AGAIN}"
            )
        return h5py.h5o.open(node, name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
