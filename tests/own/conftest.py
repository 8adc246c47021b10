"""A set that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own.sets import save_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folders(tmp_path_factory.mktemp("folders") / "set")
