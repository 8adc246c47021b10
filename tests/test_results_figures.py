"""The figures of RESULTS.md are drawn from the committed figures, and say the same."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_figures_say_what_the_pooled_runs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    script = importlib.import_module("results_figures")
    monkeypatch.setattr(sys, "argv", ["results_figures.py", "--out", str(tmp_path)])
    script.main()
    drawn = (tmp_path / "results.svg").read_text(encoding="utf-8")
    for block in script.BLOCKS:
        entries = json.loads((ROOT / "experiments" / f"{block}.json").read_text(encoding="utf-8"))["entries"]
        assert set(entries) & set(script.ARMS)
        for arm in set(entries) & set(script.ARMS):
            assert f">{100 * entries[arm]['accuracy']['value']:.1f}<" in drawn
    assert "Fold 4" in (tmp_path / "results_epochs.svg").read_text(encoding="utf-8")
    assert all((tmp_path / f"{name}.png").stat().st_size > 20_000 for name in ("results", "results_epochs"))
    for name in ("results.png", "results_epochs.png"):
        assert f"docs/figures/{name}" in (ROOT / "RESULTS.md").read_text(encoding="utf-8")
