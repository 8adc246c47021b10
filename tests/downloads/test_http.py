"""One file over HTTP, against a real web server on this machine: broken off, refused, damaged, resumed."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import httpx2
import pytest

from dataset_script import http_download
from dataset_script.http_download import DownloadError, RefusedError, RemoteFile, download
from tests.conftest import ROOT
from tests.file_server import FileServer, plain, serve, status

DATA = random.Random(0).randbytes(300_000)
FILE = RemoteFile("some.zip", len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server():
    with serve({"/f": DATA}) as running:
        yield running


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "some.zip"


def partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.incomplete")


def fetch(server: FileServer, target: Path, **options: bool) -> None:
    download(FILE, f"{server.url}/f", target, **options)
    assert target.read_bytes() == DATA and not partial_of(target).exists()


def test_once_and_never_again(server, target):
    fetch(server, target)
    fetch(server, target)
    assert server.requests == [("/f", None)] and server.sent == len(DATA)
    fetch(server, target, force=True)
    assert len(server.requests) == 2


def test_damaged_copy_is_replaced(server, target):
    fetch(server, target)
    target.write_bytes(DATA[:-1] + b"x")
    fetch(server, target)
    assert len(server.requests) == 2


@pytest.mark.parametrize("reset", [False, True])
def test_broken_connections_are_resumed(server, target, waits, reset):
    server.script = [plain(stop_after=100_000, reset=reset), plain(stop_after=50_000, reset=reset)]
    fetch(server, target)
    ranges = [asked for _, asked in server.requests]
    assert ranges[0] is None and all(asked.startswith("bytes=") for asked in ranges[1:]) and len(ranges) == 3
    assert waits == [1, 1]  # it got further each time
    if not reset:  # a reset may throw away what is on the way
        assert ranges[1:] == ["bytes=100000-", "bytes=150000-"] and server.sent == len(DATA)


def test_stalled_connection_is_resumed(server, target, monkeypatch):
    monkeypatch.setattr(http_download, "TIMEOUT", httpx2.Timeout(0.3))
    server.script = [plain(stop_after=100_000, stall=True)]
    fetch(server, target)
    assert server.requests[1] == ("/f", "bytes=100000-") and server.sent == len(DATA)


def test_stall_for_ever_is_given_up(server, target, waits, monkeypatch):
    monkeypatch.setattr(http_download, "TIMEOUT", httpx2.Timeout(0.1))
    server.always = plain(stop_after=0, stall=True)
    with pytest.raises(DownloadError, match=r"ReadTimeout.*; tried 6 times") as refused:
        fetch(server, target)
    assert "kept" not in str(refused.value)
    assert waits == [1, 2, 4, 8, 16]


def test_end_without_announced_length_is_resumed(server, target):
    server.script = [plain(stop_after=1000, length=False)]
    fetch(server, target)
    assert server.requests[1] == ("/f", "bytes=1000-")


def test_server_without_ranges_starts_anew(server, target):
    server.script = [plain(stop_after=100_000), plain(ranges=False)]
    fetch(server, target)
    assert server.requests[1] == ("/f", "bytes=100000-") and server.sent == len(DATA) + 100_000


def test_server_that_always_breaks_and_starts_anew_is_given_up(server, target):
    server.always = plain(ranges=False, stop_after=100_000)
    with pytest.raises(DownloadError, match=r"100,000 of 300,000 bytes.*tried 6 times"):
        fetch(server, target)
    assert not target.exists() and partial_of(target).stat().st_size == 100_000


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_retried(server, target, waits, code):
    server.script = [status(code)] * 3
    fetch(server, target)
    assert waits == [1, 2, 4] and len(server.requests) == 4


@pytest.mark.parametrize("code", [429, 500, 503])
def test_lasting_server_errors_are_given_up(server, target, code):
    server.always = status(code)
    with pytest.raises(DownloadError, match=rf"answers {code} .*tried 6 times"):
        fetch(server, target)


@pytest.mark.parametrize("code", [202, 401, 403, 404, 410])
def test_refusals_are_not_retried(server, target, code):
    server.always = status(code)
    with pytest.raises(RefusedError, match=f"answers {code}"):
        fetch(server, target)
    assert len(server.requests) == 1


def test_browser_challenge_is_told(server, target):
    server.always = status(202, {"x-amzn-waf-action": "challenge"})  # what figshare sends to programs at times
    with pytest.raises(RefusedError, match="a person in a browser"):
        fetch(server, target)


def test_retry_after(server, target, waits):
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    server.script = [status(429, {"Retry-After": value}) for value in ("7", date, "soon")]
    fetch(server, target)
    assert waits[0] == 7 and waits[1] == pytest.approx(100, abs=2) and waits[2] == 4
    server.always = status(503, {"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="come back in 3600 s"):
        fetch(server, target, force=True)


def test_redirections_are_followed_with_the_range(server, target):
    server.files["/storage"] = DATA
    to_storage = status(302, {"Location": "/storage"})
    server.script = [to_storage, plain(stop_after=100_000), to_storage]
    fetch(server, target)
    assert [path for path, _ in server.requests] == ["/f", "/storage"] * 2
    assert server.requests[-1][1] == "bytes=100000-" and server.sent == len(DATA)
    server.always = status(302, {"Location": "/f"})
    with pytest.raises(RefusedError, match="TooManyRedirects"):
        fetch(server, target, force=True)


def test_wrong_byte(server, target):
    server.script = [plain(change=lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:])]
    with pytest.raises(DownloadError, match=r"sha256 is .*, published is .*was deleted"):
        fetch(server, target)
    assert not target.exists() and not partial_of(target).exists()
    fetch(server, target)


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1], lambda _: b"<html>log in</html>"])
@pytest.mark.parametrize("length", [True, False])
def test_other_file(server, target, change, length):
    server.always = plain(change=change, length=length)
    with pytest.raises(DownloadError, match=r"published|from there on"):
        fetch(server, target)
    assert not target.exists()


def test_range_that_was_not_asked_for(server, target):
    partial_of(target).parent.mkdir()
    partial_of(target).write_bytes(DATA[:1000])
    server.always = status(206, {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"})
    with pytest.raises(RefusedError, match=r"bytes from 1000, the server sends 5-"):
        fetch(server, target)


@pytest.mark.parametrize("left", [b"x" * 1000, DATA[:1000], DATA, b"x" * len(DATA), DATA + b"x"])
def test_whatever_an_earlier_run_left(server, target, left):
    partial_of(target).parent.mkdir()
    partial_of(target).write_bytes(left)
    fetch(server, target)
    assert len(server.requests) == (0 if left == DATA else 2 if left == b"x" * 1000 else 1)


def test_disk_full(server, target, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the nearest to a full disk that needs no root
    try:
        with pytest.raises(OSError, match=r"some\.zip: cannot write to .*File too large.*is kept"):
            fetch(server, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not target.exists()
    with monkeypatch.context() as full:
        full.setattr(http_download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"200,000 bytes are to come but .* has 1,000 free; make room.*cache_dir"):
            fetch(server, target)
    fetch(server, target)
    assert server.requests == [("/f", None), ("/f", "bytes=100000-")]


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"some\.zip: cannot write in .*cache"):
        fetch(server, tmp_path / "cache" / "some.zip")


def test_no_server(target, waits):
    with pytest.raises(DownloadError, match=r"ConnectError.*tried 2 times"):
        download(FILE, "http://127.0.0.1:9/f", target)  # nothing listens there
    assert sum(waits) <= 2  # without network, soon


SCRIPT = """
import sys
from pathlib import Path
from dataset_script.http_download import RemoteFile, download
name, size, sha256, url, path = sys.argv[1:]
download(RemoteFile(name, int(size), sha256), url, Path(path))
"""


def in_new_process(server: FileServer, target: Path) -> subprocess.Popen[bytes]:
    arguments = [FILE.name, str(FILE.size), FILE.sha256, f"{server.url}/f", str(target)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, env=environment)


def test_killed_download_goes_on(server, target):
    server.script = [plain(stop_after=200_000, stall=True)]
    process = in_new_process(server, target)
    deadline = time.monotonic() + 60
    while not (partial_of(target).exists() and partial_of(target).stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial_of(target).stat().st_size
    assert not target.exists() and partial_of(target).read_bytes() == DATA[:kept]
    fetch(server, target)  # the dead process holds no lock
    assert server.requests[1] == ("/f", f"bytes={kept}-") and server.sent == len(DATA) + 200_000 - kept


def test_two_processes_download_once(server, target):
    server.script = [plain(stop_after=100_000, stall=True)]
    processes = [in_new_process(server, target) for _ in range(2)]
    while not server.requests:
        time.sleep(0.02)
    time.sleep(0.5)
    server.closing.set()  # the first goes on
    assert [process.wait(60) for process in processes] == [0, 0]
    assert target.read_bytes() == DATA
    assert server.requests == [("/f", None), ("/f", "bytes=100000-")] and server.sent == len(DATA)
