"""The figures of the results are drawn from the committed figures, and say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tests.conftest import ROOT


def test_figures_say_what_the_pooled_runs_say(tmp_path: Path, experiment: Callable[..., ModuleType]) -> None:
    script = experiment("results_figures", "--out", tmp_path)
    drawn = (tmp_path / "results.svg").read_text(encoding="utf-8")
    for block in script.BLOCKS:
        entries = json.loads((ROOT / "experiments" / f"{block}.json").read_text(encoding="utf-8"))["entries"]
        assert set(entries) & set(script.ARMS)
        for arm in set(entries) & set(script.ARMS):
            assert f">{100 * entries[arm]['accuracy']['value']:.1f}<" in drawn
    assert "Fold 4" in (tmp_path / "results_epochs.svg").read_text(encoding="utf-8")
    assert all((tmp_path / f"{name}.png").stat().st_size > 20_000 for name in ("results", "results_epochs"))
    for page, figure in (
        ("RESULTS.md", "docs/figures/results.png"),
        ("docs/results/short_schedule.md", "../figures/results_epochs.png"),
    ):
        assert f"]({figure})" in (ROOT / page).read_text(encoding="utf-8")
