"""`make bench` knows every benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quick


def test_every_benchmark_has_short_settings_or_a_reason_not_to() -> None:
    scripts = {path.stem for path in quick.FOLDER.glob("*.py") if '"--json"' in path.read_text(encoding="utf-8")}
    known = quick.COMMANDS.keys() | quick.NEEDS_MORE.keys() | {"quick"}
    assert scripts - known == set(), "give them settings that take seconds in benchmarks/quick.py"
    assert not quick.COMMANDS.keys() - scripts


def test_a_benchmark_runs_with_its_short_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "fuzz_readers"])
    quick.main()
    assert json.loads((tmp_path / "fuzz_readers.json").read_text())


def test_a_failing_benchmark_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quick.COMMANDS, "fuzz_readers", "--no_such_option")
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "fuzz_readers"])
    with pytest.raises(SystemExit, match="fuzz_readers"):
        quick.main()
