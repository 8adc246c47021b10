"""Download one file whose size and sha256 are known: resumed when it breaks, retried, never half-written.

Of the libraries at hand, `datasets`' own download starts anew after every break, pooch does as well, and
`huggingface_hub.file_download.http_get` resumes but loses up to 10 MB each time and does not retry a lost connection
or a 500. So the loop is here, on the Hub's HTTP client: its proxies, certificates and offline mode count.
"""

from __future__ import annotations

import email.utils
import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import httpx2
from filelock import AcquireReturnProxy, FileLock, Timeout
from huggingface_hub.utils import get_session

from hf_kdmri.whole_files import sha256_of

TIMEOUT = httpx2.Timeout(60, connect=15)  # seconds without a byte
TRIES = 6  # in a row without a new byte
TRIES_UNANSWERED = 2  # as long as no server ever answered: without network, fail soon
FIRST_WAIT = 1.0  # seconds; doubles with each try in a row, up to 16
LONGEST_WAIT = 300  # seconds; a server that asks for more is not waited for
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

logger = datasets.utils.logging.get_logger(__name__)


class DownloadError(ConnectionError):
    """A file could not be downloaded whole; the message says why."""


class RefusedError(DownloadError):
    """The server answered, and will not give this file."""


@dataclass(frozen=True)
class RemoteFile:
    """What a download must be.

    Attributes:
        name: For messages.
        size: Bytes.
        sha256: In hexadecimal.
    """

    name: str
    size: int
    sha256: str


def download(file: RemoteFile, url: str, path: Path, *, force: bool = False, offline: bool = False) -> None:
    """Have the file at `path`, downloaded if it is not there yet.

    What has been received lies in `<path>.incomplete`, and the next call goes on from there, also after a crash. The
    file gets its name when its sha256 is right. Processes that want the same path wait for one another.

    Args:
        file: Name, size and sha256.
        url: http or https; redirections are followed.
        path: Where to keep it.
        force: Download even if it is there.
        offline: Only take what is there.

    Raises:
        DownloadError: the server cannot be reached, breaks off again and again, refuses, or sends other bytes.
        OSError: the disk is full or not writable.
    """
    if not force and _is_whole(file, path):  # before the lock: a read-only cache is enough
        return
    if offline:
        raise DownloadError("offline mode is on: unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE to download")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(file, path)
    except OSError as error:
        raise OSError(error.errno, f"{file.name}: cannot write in {path.parent} ({error.strerror})") from error
    with lock:
        if not force and _is_whole(file, path):
            return  # another process was faster
        partial = path.with_name(f"{path.name}.incomplete")
        if force:
            partial.unlink(missing_ok=True)
        resumed = _fetch(file, url, partial)
        digest = sha256_of(partial)
        if digest != file.sha256 and resumed:
            logger.warning(f"{file.name}: what an earlier run left does not fit; downloading it from the start")
            partial.unlink()
            _fetch(file, url, partial)
            digest = sha256_of(partial)
        if digest != file.sha256:
            partial.unlink()
            raise DownloadError(f"its sha256 is {digest}, published is {file.sha256}; the copy was deleted")
        os.replace(partial, path)


def _is_whole(file: RemoteFile, path: Path) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == file.size and sha256_of(path) == file.sha256:
        return True
    logger.warning(f"{path}: no longer the published file; downloading it again")
    return False


def _locked(file: RemoteFile, path: Path) -> AcquireReturnProxy:
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning(f"{file.name}: another process is downloading it; waiting")
        return lock.acquire()


def _fetch(file: RemoteFile, url: str, partial: Path) -> bool:
    """Bring `partial` to the file's size; true if it goes on from what an earlier run left."""
    if _size(partial) > file.size:
        partial.unlink()
    most = _size(partial)
    resumed = most > 0
    free = shutil.disk_usage(partial.parent).free
    if free < file.size - most:
        raise OSError(
            errno.ENOSPC,
            f"{file.name}: {file.size - most:,} bytes are to come but {partial.parent} has {free:,} free; make room or "
            f"choose another disk with cache_dir=...",
        )
    failures, answered = 0, False
    with datasets.utils.tqdm(total=file.size, initial=most, unit="B", unit_scale=True, desc=file.name) as progress:
        while _size(partial) < file.size:
            problem: Exception | None = None
            try:
                _receive(file, url, partial, progress)
            except (httpx2.UnsupportedProtocol, httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
                raise RefusedError(_described(error)) from error
            except (_PassingError, httpx2.TransportError) as error:
                problem = error
            have = _size(partial)
            if have == file.size:
                break
            answered |= not isinstance(problem, (httpx2.ConnectError, httpx2.ConnectTimeout))
            failures = 1 if have > most else failures + 1  # a server that always starts anew must get further
            most = max(most, have)
            reason = _described(problem)
            if have:
                reason = f"{reason} after {have:,} of {file.size:,} bytes, which are kept"
            _wait(file, reason, problem, failures, answered)
    return resumed


def _wait(file: RemoteFile, reason: str, problem: Exception | None, failures: int, answered: bool) -> None:
    """Wait before the next try, or raise if it was the last."""
    if failures >= (TRIES if answered else TRIES_UNANSWERED):
        raise DownloadError(f"{reason}; tried {failures} times")
    wait = problem.wait if isinstance(problem, _PassingError) else None
    if wait is None:
        wait = min(FIRST_WAIT * 2 ** (failures - 1), 16)
    if wait > LONGEST_WAIT:
        raise DownloadError(f"{reason}; the server asks to come back in {wait:.0f} s")
    logger.warning(f"{file.name}: {reason}; again in {wait:.0f} s")
    time.sleep(wait)


class _PassingError(Exception):
    """An answer that may be better later."""

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.wait = wait


def _receive(file: RemoteFile, url: str, partial: Path, progress: datasets.utils.tqdm) -> None:
    """Make one request and append what it sends."""
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        start = _start_of_body(response, have, file, partial)
        try:
            with open(partial, "r+b" if partial.exists() else "wb") as stream:
                stream.seek(start)
                stream.truncate()
                progress.update(start - progress.n)
                for block in response.iter_raw():
                    start += len(block)
                    if start > file.size:
                        raise RefusedError(f"the server sends more than the published {file.size:,} bytes")
                    stream.write(block)
                    progress.update(len(block))
        except DownloadError:
            partial.unlink()
            raise
        except OSError as error:  # httpx2's own errors are none
            raise OSError(
                error.errno,
                f"{file.name}: cannot write to {partial} ({error.strerror}); what was received is kept, so that the "
                f"next try goes on from there",
            ) from error


def _start_of_body(response: httpx2.Response, have: int, file: RemoteFile, partial: Path) -> int:
    """Where in the file the answer's bytes belong, or why there is no good answer."""
    status = response.status_code
    if status in _PASSING:
        raise _PassingError(f"the server answers {status} {response.reason_phrase}", _retry_after(response))
    if status == 416:  # what is here is no beginning of what the server has
        partial.unlink(missing_ok=True)
        raise _PassingError("the server has nothing from there on; from the start", 0)
    if response.headers.get("x-amzn-waf-action"):
        raise RefusedError(f"the server wants a person in a browser (status {status})")
    if status not in (200, 206):
        raise RefusedError(f"the server answers {status} {response.reason_phrase}")
    start = 0
    if status == 206:
        span, _, total = response.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(have):
            raise RefusedError(f"asked for bytes from {have}, the server sends {span or 'it does not say which'}")
        start, offered = have, total
    else:
        offered = response.headers.get("content-length", "")
    if offered.isdigit() and int(offered) != file.size:
        raise RefusedError(f"the server has {int(offered):,} bytes, published are {file.size:,}")
    return start


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the header Retry-After asks for, given as seconds or as a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _described(error: Exception | None) -> str:
    if error is None:
        return "the connection ended early"
    if isinstance(error, _PassingError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
