"""Downloads from figshare, a mirror and Kaggle, each against a real web server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import httpx2
import huggingface_hub
import numpy as np
import pytest

from dataset_script import figshare_download, http_download, kaggle_download
from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from dataset_script.http_download import DownloadError, RefusedError, RemoteFile, download
from hf_kdmri.data.pixels import window_to_uint8
from tests.data_fixtures import BORDER, asymmetric_image, good_mat
from tests.file_server import FileServer, plain, serve, status

DATA = random.Random(0).randbytes(300_000)
FILE = RemoteFile("some.zip", len(DATA), hashlib.sha256(DATA).hexdigest())
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """The servers here are this machine, so the tests' offline mode is lifted."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds that the downloader would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(http_download, "time", types.SimpleNamespace(sleep=waited.append, time=time.time))
    return waited


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


# ---------------------------------------------------------------------------------------------- through the builder


def build(cache_dir: Path, **options) -> datasets.DatasetDict:
    builder = FigshareBrainTumor(cache_dir=str(cache_dir), **options)
    builder.download_and_prepare()
    return builder.as_dataset()


def numbers(splits: datasets.DatasetDict) -> list[int]:
    return sorted(number for split in splits.values() for number in split["slice"])


@pytest.fixture
def mirror(monkeypatch):
    """A server with four small zips under their file ids, and the table of published files to match."""
    table, files = [], {}
    for part, published in enumerate(figshare_download.PUBLISHED_ZIPS):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number in range(part * 3 + 1, part * 3 + 4):
                archive.writestr(f"{number}.mat", good_mat(number % 3, f"8{number:04d}"))
        data = buffer.getvalue()
        files[f"/files/{published.file_id}"] = data
        table.append(replace(published, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(figshare_download, "PUBLISHED_ZIPS", tuple(table))
    with serve(files) as running:
        running.url += "/files"
        yield running


def test_builder_downloads_once_for_all_folds(mirror, tmp_path):
    splits = build(tmp_path, base_url=mirror.url)
    assert splits["test"].info.download_size == mirror.sent
    assert numbers(splits) == list(range(1, 13))
    row = next(row for split in splits.values() for row in split if row["slice"] == 5)
    np.testing.assert_array_equal(np.asarray(row["image"]), window_to_uint8(asymmetric_image())[0])
    np.testing.assert_allclose(np.array(row["tumor_border"]).reshape(-1, 2), BORDER)
    assert len(build(tmp_path, base_url=mirror.url, fold=1)["test"])
    assert sorted(Counter(path for path, _ in mirror.requests).items()) == sorted((path, 1) for path in mirror.files)
    folder = tmp_path / "downloads" / figshare_download.FOLDER
    assert {path.name for path in folder.glob("*.zip")} == {file.name for file in figshare_download.PUBLISHED_ZIPS}
    assert numbers(build(tmp_path / "other", data_dir=str(folder))) == numbers(splits)  # a data_dir as any other


def test_builder_resumes(mirror, tmp_path):
    mirror.script = [plain(stop_after=2000), plain(stop_after=1000)]
    assert len(numbers(build(tmp_path, base_url=mirror.url))) == 12
    assert [asked for _, asked in mirror.requests[:3]] == [None, "bytes=2000-", "bytes=3000-"]
    assert mirror.sent == sum(map(len, mirror.files.values()))


def test_builder_names_file_address_and_ways_on(mirror, tmp_path):
    path = next(iter(mirror.files))
    good = mirror.files[path]
    mirror.files[path] = good[:-1] + bytes([good[-1] ^ 1])
    message = (
        r"brainTumorDataPublic_1-766\.zip: cannot be downloaded from http.*sha256 is.*deleted.*--data_dir.*make demo"
    )
    with pytest.raises(DownloadError, match=message):
        build(tmp_path, base_url=mirror.url)
    mirror.files[path] = good
    mirror.always = status(403)
    with pytest.raises(DownloadError, match=r"1-766\.zip: cannot be downloaded.*403 Forbidden.*--data_dir.*make demo"):
        build(tmp_path, base_url=mirror.url)
    mirror.always = None
    assert len(numbers(build(tmp_path, base_url=mirror.url))) == 12


def test_figshare_has_two_addresses(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(figshare_download, "BASE_URL", f"{mirror.url}/refused")
    monkeypatch.setattr(figshare_download, "API_URL", mirror.url)
    assert len(numbers(build(tmp_path, base_url=f"{mirror.url}/refused"))) == 12
    assert len(mirror.requests) == 8
    monkeypatch.setattr(figshare_download, "API_URL", f"{mirror.url}/no")
    with pytest.raises(DownloadError, match=r"/no/3381290 \(the server answers 404"):
        build(tmp_path / "other", base_url=f"{mirror.url}/refused")


@pytest.mark.parametrize("where", [datasets.config, huggingface_hub.constants])
def test_offline_mode(mirror, tmp_path, monkeypatch, where):
    with monkeypatch.context() as offline:
        offline.setattr(where, "HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match=r"offline mode is on: unset HF_HUB_OFFLINE.*--data_dir.*make demo"):
            build(tmp_path, base_url=mirror.url)
        assert not mirror.requests
    build(tmp_path, base_url=mirror.url)
    monkeypatch.setattr(where, "HF_HUB_OFFLINE", True)
    assert len(build(tmp_path, base_url=mirror.url, fold=1)["test"])  # what was downloaded can be used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "zenodo"}, "expected 'figshare' or 'kaggle'"),
        ({"base_url": "ftp://host/files"}, "begins with http:// or https://"),
        ({"base_url": "/data/zips"}, "for files on this machine: data_dir"),
        ({"source": "kaggle", "data_dir": "/data"}, "give at most one"),
        ({"base_url": "http://host", "data_dir": "/data"}, "give at most one"),
    ],
)
def test_sources_are_checked_at_construction(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        FigshareBrainTumor(cache_dir=str(tmp_path), **options)


# ---------------------------------------------------------------------------------------------------------- Kaggle


def kaggle_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(1, 13):
            archive.writestr(f"dataset/data{number % 2}/{number}.mat", good_mat(number % 3, f"8{number:04d}"))
        archive.writestr("dataset/cvind.mat", b"x")
    return buffer.getvalue()


def test_kaggle_through_a_stand_in(tmp_path, monkeypatch):
    """A module of kagglehub's name, so that this runs where it is not installed."""
    calls = []

    def dataset_download(handle: str, *, force_download: bool = False) -> str:
        calls.append((handle, force_download))
        with zipfile.ZipFile(io.BytesIO(kaggle_archive())) as archive:
            archive.extractall(tmp_path / "kaggle")
        return str(tmp_path / "kaggle")

    module = types.ModuleType("kagglehub")
    module.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    assert numbers(build(tmp_path / "cache", source="kaggle")) == list(range(1, 13))
    assert calls == [("ashkhagan/figshare-brain-tumor-dataset", False)]
    module.dataset_download = lambda *_, **__: 1 / 0
    with pytest.raises(DownloadError, match=r"kagglehub could not download it \(division by zero\).*source='figshare'"):
        build(tmp_path / "other", source="kaggle")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode"):
        kaggle_download.kaggle_folder()


def test_kaggle_without_its_client(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_kdmri\[kaggle\]'"):
        build(tmp_path, source="kaggle")


def test_kaggle_through_its_client(tmp_path, monkeypatch):
    """The real kagglehub, its requests sent to this machine."""
    pytest.importorskip("kagglehub")
    from kagglesdk import kaggle_env

    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    calls = []

    def service(handler, _):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        calls.append((handler.path, json.loads(body or b"{}")))
        if "Download" in handler.path:
            data, kind = kaggle_archive(), "application/zip"
        else:
            data, kind = json.dumps({"currentVersionNumber": 1}).encode(), "application/json"
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with serve({}) as server:
        server.always = service
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        splits = build(tmp_path / "cache", source="kaggle")
        assert numbers(splits) == list(range(1, 13))
        seen = len(calls)
        build(tmp_path / "cache", source="kaggle")
        assert len(calls) == seen  # the prepared set needs no request
        folder = kaggle_download.kaggle_folder()  # from kagglehub's cache
    assert folder.is_relative_to(tmp_path / "kagglehub")
    assert sum("Download" in path for path, _ in calls) == 1
    assert calls[0][1]["ownerSlug"] == "ashkhagan" and calls[0][1]["datasetSlug"] == "figshare-brain-tumor-dataset"
