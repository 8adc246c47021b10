"""A model that is nowhere is said to be so within seconds, whatever the Hub does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hf_kdmri.hub_names import check_model_name
from tests.hub import serve_hub
from tests.hub.client import use_hub
from tests.hub.faults import Fault, refuse, stall


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with serve_hub() as hub:
        hub.slept = use_hub(monkeypatch, hub)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
        yield hub


def test_what_is_there_passes_with_one_question(hub, tmp_path) -> None:
    check_model_name(tmp_path)
    assert hub.requests == []
    api = HfApi()
    api.create_repo("jane/x", private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="jane/x")
    hub.requests.clear()
    check_model_name("jane/x")
    check_model_name("jane/x")  # as a command and the class that loads the model do
    assert hub.requests == ["HEAD /jane/x/resolve/main/config.json 200"]
    api.hf_hub_download("jane/x", "config.json", cache_dir=constants.HF_HUB_CACHE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jane/nothing", "shows no model of that name: check the spelling; if it is private, log in"),
        ("we ird", "the Hugging Face Hub allows no such name"),
        ("a/b/c", "there is no folder a/b/c; give a model's folder, or user/name"),
        ("./x", r"there is no folder ./x; give"),
    ],
)
def test_what_is_not_there_is_told_at_once(hub, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_model_name(name)
    assert len(hub.requests) <= 1 and not hub.slept


def test_a_repository_without_a_model(hub) -> None:
    HfApi().create_repo("jane/empty")
    with pytest.raises(ValueError, match=r"'jane/empty' on the Hugging Face Hub has no config\.json"):
        check_model_name("jane/empty")


def test_a_hub_that_fails_or_hangs_is_asked_once(hub, monkeypatch) -> None:
    hub.faults.append(Fault("HEAD", refuse(503)))
    with pytest.raises(ValueError, match=r"gives no answer \(HTTP 503\).*HF_HUB_OFFLINE=1"):
        check_model_name("jane/x")
    hub.faults.append(Fault("HEAD", stall()))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="gives no answer"):
        check_model_name("jane/x")
    assert time.perf_counter() - start < 5
    assert len([line for line in hub.requests if line.startswith("HEAD")]) <= 2 and not hub.slept


def test_offline_only_the_cache_counts(hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="was not asked, as HF_HUB_OFFLINE is set; its cache has no"):
        check_model_name("jane/x")
    assert hub.requests == []


def test_nobody_listens(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "hf_kdmri.cli", "predict", __file__, "--model", "jane/x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"there is no folder 'jane/x' here, and the Hugging Face Hub ({address}) gives no answer" in done.stderr
