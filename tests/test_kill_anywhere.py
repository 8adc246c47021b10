"""The whole job killed at a few drawn points, by the harness of benchmarks/kill_anywhere.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc"),
]


def killed(tmp_path: Path, *kinds: str) -> list[dict]:
    """One fault of each kind; the rows of the harness."""
    told = tmp_path / "told.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_anywhere.py"), "--folder", str(tmp_path)]
    command += ["--kinds", *kinds, "--count", str(len(kinds)), "--seed", "3", "--json", str(told)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = json.loads(told.read_text())["rows"]
    assert [row["kind"] for row in rows] == list(kinds) and all(row["starts"] == 1 for row in rows)
    return rows


def test_one_process_goes_on_to_the_same_bits(tmp_path: Path):
    rows = {row["kind"]: row for row in killed(tmp_path, "saving", "event", "sigterm", "disk", "worker")}
    assert rows["sigterm"]["exit_code"] == 75 and "Stopped by SIGTERM" in rows["sigterm"]["last_line"]
    assert rows["saving"]["exit_code"] == rows["event"]["exit_code"] == -9
    assert rows["disk"]["exit_code"] == 1
    assert rows["worker"]["exit_code"] == 1 and "a data worker died" in rows["worker"]["last_line"]


@pytest.mark.two_process
def test_two_processes_go_on_to_the_same_bits(tmp_path: Path):
    for row in killed(tmp_path, "rank_sigterm", "rank_exception"):
        assert row["exit_code"] == 1  # torchrun's
