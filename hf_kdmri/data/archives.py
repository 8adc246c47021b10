"""Find the slices in a data folder, whatever the packaging, and read them one by one without extracting to disk."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType

from hf_kdmri.data.mat_file import SliceFileError, slice_number

NOT_A_SLICE = frozenset({"cvind.mat"})  # the authors' fold indices lie beside the slices
MAX_MAT_BYTES = 64 * 2**20  # published: up to 0.8 MB
MAX_INNER_ZIP_BYTES = 512 * 2**20  # held in memory; published: up to 232 MB
MAX_RATIO = 200  # decompressed / compressed; .mat files are compressed inside, so about 1 to 10
MAX_INNER_ZIP_RATIO = 20  # published: 1
MAX_MEMBERS = 100_000
MAX_ZIP_DEPTH = 2  # the all-in-one download is a zip of zips


class DataFolderError(ValueError):
    """A data folder or archive that cannot be used; the message names the file and the way out."""


@dataclass(frozen=True, order=True)
class SliceEntry:
    """Where one slice lies: small and picklable, so that lists of entries can be shared out to processes.

    Attributes:
        number: Slice number.
        path: The `.mat` file, or the archive that holds it.
        members: Names to follow inside the archive: `()` for a loose file, `("1.mat",)` in a zip,
            `("inner.zip", "1.mat")` in a zip of zips.
    """

    number: int
    path: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Path for messages, e.g. `data/all.zip/brainTumorDataPublic_1-766.zip/1.mat`."""
        return "/".join((self.path, *self.members))


def data_files(data_dir: str | Path) -> list[Path]:
    """Return the `.zip` and `.mat` files below a folder (or the one zip given), sorted by path.

    Raises:
        DataFolderError: the folder does not exist, or holds no such file.
    """
    root = Path(data_dir).expanduser()
    if not root.exists():
        raise DataFolderError(f"{root}: no such folder; {_WAYS_ON}")
    found = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    found = [path for path in found if path.suffix.lower() in (".zip", ".mat") and not _is_junk(path.name)]
    if not found:
        raise DataFolderError(f"{root}: no .zip or .mat file in this folder; {_WAYS_ON}")
    return found


_WAYS_ON = (
    "point data_dir at the published zips (brainTumorDataPublic_*.zip, figshare article 1512427), "
    "or run `make demo` for generated slices"
)


def find_slices(data_dir: str | Path) -> list[SliceEntry]:
    """List the slices in a folder, sorted by slice number.

    The folder may hold, at any depth: the four published zips, the one zip of them, a zip of `.mat` files in
    folders (Kaggle), or loose `.mat` files. `cvind.mat` is no slice.

    Args:
        data_dir: A folder, or one zip file.

    Raises:
        DataFolderError: no slices, a broken or unsafe archive, or two files for one slice.
        SliceFileError: a `.mat` file whose name is not a number.
    """
    files = data_files(data_dir)
    entries = [
        SliceEntry(slice_number(str(p)), str(p)) for p in files if p.suffix.lower() == ".mat" and _is_slice(p.name)
    ]
    zips = {str(path): str(path) for path in files if path.suffix.lower() == ".zip"}
    entries += _entries_in_zips(zips)
    if not entries:
        raise DataFolderError(f"{data_dir}: no slice (<number>.mat) in {', '.join(p.name for p in files)}; {_WAYS_ON}")
    return _sorted_unique(entries)


def find_slices_in_zips(zips: Mapping[str, str]) -> list[SliceEntry]:
    """List the slices in zip files with any name, sorted by slice number.

    Args:
        zips: Path of each zip, and the name to call it in errors (downloads are stored under hashed names).

    Raises:
        DataFolderError: as for `find_slices`.
    """
    entries = _sorted_unique(_entries_in_zips(zips))
    if not entries:
        raise DataFolderError(f"no slice (<number>.mat) in {', '.join(zips.values())}; {_WAYS_ON}")
    return entries


def read_slices(entries: Iterable[SliceEntry]) -> Iterator[tuple[SliceEntry, bytes]]:
    """Yield each entry with its file's bytes; archives are opened once while consecutive entries share them."""
    with SliceReader() as reader:
        for entry in entries:
            yield entry, reader.read(entry)


class SliceReader:
    """Reads entries lazily; holds open the archives of the last entry only.

    A zip inside a zip is held in memory (published: 232 MB at most, one at a time), never written to disk.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._open: list[tuple[str, zipfile.ZipFile]] = []  # outermost first

    def __enter__(self) -> SliceReader:
        """Return itself; leaving the context closes the archives."""
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the archives."""
        self._close_from(0)

    def read(self, entry: SliceEntry) -> bytes:
        """Return the bytes of the entry's `.mat` file.

        Raises:
            DataFolderError: the file is gone, or its archive is damaged.
            SliceFileError: the file is larger than a slice can be.
        """
        if entry.members:
            archive = self._archive((entry.path, *entry.members[:-1]))
            return _read_member(archive, entry.members[-1], entry.name).getvalue()
        path = Path(entry.path)
        try:
            if path.stat().st_size > MAX_MAT_BYTES:
                raise SliceFileError(f"{path}: larger than {MAX_MAT_BYTES >> 20} MiB, so no slice; remove it")
            return path.read_bytes()
        except OSError as error:
            raise DataFolderError(
                f"{path}: cannot be read ({error.strerror}); restore the file and try again"
            ) from error

    def _archive(self, chain: tuple[str, ...]) -> zipfile.ZipFile:
        """Open the zips along `chain` (a path, then names inside), keeping what is open already."""
        shared = 0
        while shared < min(len(chain), len(self._open)) and self._open[shared][0] == chain[shared]:
            shared += 1
        self._close_from(shared)
        for depth in range(shared, len(chain)):
            name = "/".join(chain[: depth + 1])
            source: str | io.BytesIO = chain[0]
            if depth:
                source = _read_member(self._open[-1][1], chain[depth], name)
            self._open.append((chain[depth], _open_zip(source, name)))
        return self._open[-1][1]

    def _close_from(self, depth: int) -> None:
        while len(self._open) > depth:
            self._open.pop()[1].close()


def _entries_in_zips(zips: Mapping[str, str]) -> list[SliceEntry]:
    entries: list[SliceEntry] = []
    for path, shown in zips.items():
        with _open_zip(path, shown) as archive:
            entries += _entries_in_zip(archive, path, shown, ())
    return entries


def _entries_in_zip(archive: zipfile.ZipFile, path: str, shown: str, outer: tuple[str, ...]) -> Iterator[SliceEntry]:
    for member in archive.infolist():
        name = f"{shown}/{member.filename}"
        _refuse_unsafe_name(member.filename, shown)
        if member.is_dir() or _is_junk(member.filename):
            continue
        base, suffix = PurePosixPath(member.filename).name, PurePosixPath(member.filename).suffix.lower()
        if suffix == ".mat" and _is_slice(base):
            _refuse_unsafe_member(member, name)
            yield SliceEntry(slice_number(name), path, (*outer, member.filename))
        elif suffix == ".zip":
            if len(outer) + 2 > MAX_ZIP_DEPTH:
                raise DataFolderError(
                    f"{name}: zips nested more than {MAX_ZIP_DEPTH} deep; unpack the outer ones first"
                )
            with _open_zip(_read_member(archive, member.filename, name), name) as inner_archive:
                yield from _entries_in_zip(inner_archive, path, name, (*outer, member.filename))


def _open_zip(source: str | io.BytesIO, name: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(source)
        size = os.path.getsize(source) if isinstance(source, str) else source.getbuffer().nbytes
    except Exception as error:  # besides BadZipFile, a damaged file gives struct.error, IndexError and others
        raise DataFolderError(
            f"{name}: not a complete zip file ({error}); it may be cut short: download it again"
        ) from error
    members = archive.infolist()
    packed = sum(member.compress_size for member in members)
    if len(members) > MAX_MEMBERS or packed > size:  # the same bytes listed many times are a bomb
        archive.close()
        raise DataFolderError(
            f"{name}: lists {len(members)} members of together {packed} bytes in a file of {size} bytes (at most "
            f"{MAX_MEMBERS} members that do not overlap); use the published archives"
        )
    return archive


def _read_member(archive: zipfile.ZipFile, member: str, name: str) -> io.BytesIO:
    try:
        info = archive.getinfo(member)
        _refuse_unsafe_member(info, name)
        content = io.BytesIO()
        with archive.open(info) as stream:  # zipfile stops at the declared size and checks the CRC
            shutil.copyfileobj(stream, content, 2**20)  # piece by piece: read() needs twice the memory
        return content
    except DataFolderError:
        raise
    except Exception as error:  # zlib.error, EOFError, NotImplementedError, struct.error: zipfile lists none
        raise DataFolderError(f"{name}: damaged inside its archive ({error}); download the archive again") from error


def _refuse_unsafe_member(member: zipfile.ZipInfo, name: str) -> None:
    is_zip = member.filename.lower().endswith(".zip")
    max_bytes, max_ratio = (MAX_INNER_ZIP_BYTES, MAX_INNER_ZIP_RATIO) if is_zip else (MAX_MAT_BYTES, MAX_RATIO)
    if member.file_size > max_bytes or member.file_size > 2**20 + max_ratio * member.compress_size:
        raise DataFolderError(
            f"{name}: {member.file_size} bytes from {member.compress_size} compressed ones, more than a slice archive "
            f"can need (at most {max_bytes} bytes and {max_ratio} times); use the published archives"
        )
    if member.flag_bits & 1:
        raise DataFolderError(f"{name}: is encrypted; use the published archives, which are not")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA may ask for 4 GB of memory
        raise DataFolderError(
            f"{name}: is compressed with method {member.compress_type}, expected none (0) or deflate (8); use the "
            f"published archives, or zip your own with deflate"
        )


def _refuse_unsafe_name(member: str, archive: str) -> None:
    windows = PureWindowsPath(member)  # splits at / and \ and knows drive letters
    if windows.is_absolute() or windows.drive or windows.root or ".." in windows.parts or not windows.parts:
        raise DataFolderError(
            f"{archive}: holds {member!r}, an absolute, parent or empty path, which is refused; use the published "
            f"archives"
        )


def _is_junk(name: str) -> bool:
    """True for the side files that macOS adds when it copies or zips."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith("._")


def _is_slice(base_name: str) -> bool:
    return base_name.lower() not in NOT_A_SLICE


def _sorted_unique(entries: Iterable[SliceEntry]) -> list[SliceEntry]:
    ordered = sorted(entries)
    for first, second in pairwise(ordered):
        if first.number == second.number:
            raise DataFolderError(
                f"two files claim slice {first.number}: {first.name} and {second.name}; keep one copy of the data in "
                f"the folder (the zips or the unpacked files)"
            )
    return ordered
