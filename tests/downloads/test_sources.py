"""The published files through the builder: from figshare, from a mirror, from Kaggle."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import types
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest

from dataset_script import figshare_download, kaggle_download
from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from dataset_script.http_download import DownloadError
from hf_kdmri.data.pixels import window_to_uint8
from tests.data_fixtures import BORDER, asymmetric_image, good_mat
from tests.file_server import plain, serve, status


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
