"""Downloads of the tests come from this machine, and nobody waits between tries."""

from __future__ import annotations

import time
import types

import datasets
import huggingface_hub
import pytest

from dataset_script import http_download


@pytest.fixture(autouse=True)
def online(monkeypatch) -> None:
    """The servers of these tests are this machine, so the tests' offline mode is lifted."""
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
