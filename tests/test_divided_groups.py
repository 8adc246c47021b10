"""Patient groups that a split divides, set beside groups of their kind that it leaves whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml


def write_fold(file: Path, groups: list[str], labels: list[int], predicted: list[int]) -> None:
    clean = np.full((len(groups), 3), 0.1, dtype=np.float32)
    clean[range(len(groups)), predicted] = 0.8
    rows = {"label": np.array(labels), "slice": np.arange(len(groups)), "group": np.array(groups), "clean": clean}
    np.savez(file, **{f"{split} {name}": values for split in ("validation", "test") for name, values in rows.items()})  # type: ignore[arg-type]


def test_divided_groups_are_compared_with_whole_ones_of_their_class_and_letters(
    tmp_path: Path, experiment: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    plan, told = tmp_path / "plan.yaml", tmp_path / "told.json"
    plan.write_text(yaml.safe_dump({"runs": [{"name": "alone-f{fold}-s{seed}", "folds": [0, 1], "seeds": [42]}]}))
    command = ("divided_groups", tmp_path, plan, "--json", told)
    with pytest.raises(SystemExit, match="has predicted the test slices of all its folds"):
        experiment(*command)
    # MR1 lies in both folds; MR2 is of its kind; the glioma 77, the meningioma MR3 and the others are not
    write_fold(tmp_path / "alone-f0-s42.npz", ["MR1", "MR1", "MR2", "MR2", "MR3"], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1])
    write_fold(tmp_path / "alone-f1-s42.npz", ["MR1", "MR1", "77", "88", "99"], [1, 1, 1, 2, 0], [1, 2, 0, 0, 0])
    experiment(*command)
    row = json.loads(told.read_text())["alone"]
    shares = {kind: (row[kind]["patient_groups"], row[kind]["slices"], row[kind]["recall"]["value"])
              for kind in ("divided", "whole")}  # fmt: skip
    assert shares == {"divided": (1, 4, 0.75), "whole": (1, 2, 0.5)}
    assert row["difference"]["value"] == 0.25 and row["difference"]["interval"] is None  # two patients are too few
    printed = capsys.readouterr().out
    assert "75.0" in printed and "+25.0" in printed

    write_fold(tmp_path / "alone-f1-s42.npz", ["77", "88", "99"], [1, 2, 0], [0, 0, 0])
    with pytest.raises(SystemExit, match="nothing to compare"):
        experiment(*command)
