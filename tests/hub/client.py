"""How a test points the real client at the server: in this process, or in another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from tests.conftest import ROOT
from tests.hub.store import Hub


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, token: str | None = "hf_jane") -> list[float]:
    """Let the client of this process talk to the server, and not sleep between its tries.

    hf_xet, where it is installed, uploads without asking the server whether it takes Xet; the server does not, so that
    the client is told to use the LFS protocol, as it does where hf_xet is missing.

    Returns:
        The seconds that would have been slept, growing.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    slept: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", slept.append)
    return slept


def hub_environment(hub: Hub, home: Path, token: str | None = "hf_jane", **more: str) -> dict[str, str]:
    """The environment of another process that talks to the server and has no cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return environment | ({} if token is None else {"HF_TOKEN": token})
