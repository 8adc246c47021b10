"""One published slice: a MATLAB v7.3 file (HDF5 behind a 512-byte user block) in, a checked `Slice` out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import h5py
import numpy as np

from hf_kdmri.data.bounded_hdf5 import read_bounded

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
    low, high = _percentiles(image.ravel(), percentiles)
    if high <= low:
        return np.zeros(image.shape, np.uint8), low, high
    scaled = (np.clip(image, low, high) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8), low, high


def _percentiles(values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """`np.percentile(values, percentiles)` in float64: numpy's own subtracts int16 neighbours, which can overflow."""
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"window percentiles are {percentiles}; expected 0 <= lower < upper <= 100")
    positions = [percentile / 100 * (values.size - 1) for percentile in percentiles]
    ranks = [(int(p), min(int(p) + 1, values.size - 1)) for p in positions]
    ordered = np.partition(values, sorted({rank for pair in ranks for rank in pair}))
    below_above = [(float(ordered[below]), float(ordered[above])) for below, above in ranks]
    low, high = (b + (a - b) * (p - int(p)) for p, (b, a) in zip(positions, below_above, strict=True))
    return low, high


def _name_of(source: bytes | BinaryIO | str | Path, name: str | None) -> str:
    if name is None:
        name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", None)
    if not isinstance(name, str):
        raise TypeError("name= is needed when the source is bytes or a file without a name: errors must name the file")
    return name


class _Fields:
    """The struct `cjdata` of one open file; every field is checked as it is read."""

    def __init__(self, source: bytes | BinaryIO | str | Path, name: str) -> None:
        self._name = name
        self._source = io.BytesIO(source) if isinstance(source, bytes) else source
        self._file: h5py.File | None = None

    def __enter__(self) -> _Fields:
        try:
            self._file = h5py.File(self._source, "r")
        except FileNotFoundError:
            raise
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
            if dataset.dtype.kind not in "iufb":
                raise SliceFileError(
                    f"{self._name}: {field} holds {dataset.dtype} (text, references or records), expected numbers; "
                    f"{_DOWNLOAD_AGAIN}"
                )
            chunk_values = int(np.prod(dataset.chunks or (0,), dtype=object))
            # shape is None for HDF5's null dataspace; a chunk is decompressed whole, so its size counts too
            if dataset.shape is None or dataset.size > max_values or chunk_values > max(max_values, 2**16):
                raise SliceFileError(
                    f"{self._name}: {field} has shape {dataset.shape} in chunks of {dataset.chunks}, more than a slice "
                    f"can have ({max_values} values); {_DOWNLOAD_AGAIN}"
                )
            if "MATLAB_empty" in dataset.attrs:  # MATLAB stores an empty array as its shape
                return np.zeros((0, 0), dataset.dtype)
            value = read_bounded(dataset)
            return value.astype(np.uint8 if value.dtype.kind == "b" else value.dtype.newbyteorder("="), copy=False)
        except SliceFileError:
            raise
        except Exception as error:  # a damaged file can fail anywhere inside HDF5, with whatever h5py makes of it
            raise SliceFileError(
                f"{self._name}: {field} cannot be read ({_first_line(error)}); {_DOWNLOAD_AGAIN}"
            ) from error

    def _dataset(self, field: str) -> h5py.Dataset:
        assert self._file is not None
        node: h5py.Group = self._file
        for step in ("cjdata", field):
            link = node.get(step, getlink=True) if isinstance(node, h5py.Group) and step in node.keys() else None
            if link is None:
                raise SliceFileError(
                    f"{self._name}: field cjdata/{field} is lacking; {_DOWNLOAD_AGAIN} (cjdata needs label, PID, "
                    f"image, tumorBorder and tumorMask)"
                )
            if not isinstance(link, h5py.HardLink):
                raise SliceFileError(
                    f"{self._name}: {step} is a soft or external link; links are refused because they can point at "
                    f"other files; {_DOWNLOAD_AGAIN}"
                )
            node = node[step]
        if not isinstance(node, h5py.Dataset):
            raise SliceFileError(f"{self._name}: cjdata/{field} is a group, expected numbers; {_DOWNLOAD_AGAIN}")
        if node.external or node.is_virtual:
            raise SliceFileError(
                f"{self._name}: {field} is stored outside this file, which is refused; {_DOWNLOAD_AGAIN}"
            )
        return node


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
