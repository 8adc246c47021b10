"""`make bench` knows every benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quick


def test_every_benchmark_has_short_settings_or_a_reason_not_to() -> None:
    scripts = {path.stem for path in quick.FOLDER.glob("*.py") if '"--json"' in path.read_text(encoding="utf-8")}
    commands = {quick.SCRIPTS.get(name, name) for name in quick.COMMANDS}
    known = commands | quick.NEEDS_MORE.keys() | {"quick"}
    assert scripts - known == set(), "give them settings that take seconds in benchmarks/quick.py"
    assert not commands - scripts


def test_a_benchmark_runs_with_its_short_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "fuzz_readers"])
    quick.main()
    assert json.loads((tmp_path / "fuzz_readers.json").read_text())


@pytest.mark.slow
def test_peers_compute_the_same_loss_and_are_timed_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "peers"])
    quick.main()
    told = json.loads((tmp_path / "peers.json").read_text())
    losses = told["losses"]
    for name in (
        "timm.task logits, as documented",
        "transformers guide, as documented",
        "ours, geometry",
        "ours, geometry, cached",
    ):
        assert losses[name]["relative_difference"] < 1e-4
        assert told["figures"][name]["images_per_second"] > 0
    wanted = {"ours, geometry / floor", "ours, geometry, cached / student"}
    assert wanted <= told["ratios"].keys()


@pytest.mark.slow
def test_allocators_change_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "cpu_memory"])
    quick.main()
    assert json.loads((tmp_path / "cpu_memory.json").read_text())["figures"]["keep_memory"]["peak"]["median"] > 0


def test_a_failing_benchmark_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quick.COMMANDS, "fuzz_readers", "--no_such_option")
    monkeypatch.setattr("sys.argv", ["quick.py", "--out", str(tmp_path), "--only", "fuzz_readers"])
    with pytest.raises(SystemExit, match="fuzz_readers"):
        quick.main()
