from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES
from hf_kdmri.evaluation.robustness.figures import plot_corruption_sheet, plot_robustness
from tests.test_figures import check_files


def results(names: tuple[str, ...], corruptions: tuple[str, ...] = tuple(SEVERITIES)) -> dict:
    models = {}
    for number, name in enumerate(names):
        clean = 0.9 - 0.02 * number
        accuracy = {c: [clean - 0.05 * level for level in range(1, len(SEVERITIES[c]) + 1)] for c in corruptions}
        drop = {corruption: float(clean - np.mean(values)) for corruption, values in accuracy.items()}
        models[name] = {
            "clean_accuracy": clean,
            "accuracy": accuracy,
            "drop": drop,
            "mean_drop": float(np.mean(list(drop.values()))),
        }
    severities = {corruption: list(SEVERITIES[corruption]) for corruption in corruptions}
    return {"n": 150, "n_patients": 41, "severities": severities, "models": models}


def test_chart_has_a_panel_for_each_corruption_and_a_line_for_each_model(tmp_path) -> None:
    names = ("teacher", "baseline", "student")
    out = tmp_path / "new" / "robustness"
    text = check_files(plot_robustness(results(names), out, subtitle="test split, fold 0"), out)
    for expected in ("test split, fold 0; n = 150 slices of 41 patients", "Rician noise", "Gibbs ringing", "severity"):
        assert expected in text
    assert "teacher: −13.7 points on average" in text  # 13 lose 15 points, 2 flips lose 5
    svg = (tmp_path / "new" / "robustness.svg").read_text()
    for corruption in SEVERITIES:
        for name in names:
            assert f'id="{corruption}-{name}"' in svg


@pytest.mark.parametrize("count", [1, 6])
def test_chart_of_few_corruptions_and_other_names(count, tmp_path) -> None:
    text = check_files(
        plot_robustness(results(("a $x$", "b"), tuple(SEVERITIES)[:count]), tmp_path / "r"), tmp_path / "r"
    )
    assert "a $x$" in text
    assert text.count("accuracy [%]") == (2 if count > 5 else 1)


def test_too_many_models_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="6 models; this figure tells 5 apart"):
        plot_robustness(results(tuple("abcdef")), tmp_path / "r")


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_shows_every_strength(channels, tmp_path) -> None:
    view = torch.randint(0, 255, (channels, 24, 24), dtype=torch.uint8)
    names = ["blur", "rotation", "horizontal_flip"]
    out = tmp_path / "sheet"
    text = check_files(plot_corruption_sheet(view, out, corruptions=names, subtitle="phantom"), out)
    for expected in ("uncorrupted", "horizontal flip", "45°", "σ 0.4%", "phantom"):
        assert expected in text


@pytest.mark.parametrize(("names", "message"), [([], "no corruptions"), (["snow"], "unknown corruption")])
def test_sheet_refuses_what_is_not_there(names, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        plot_corruption_sheet(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "s", corruptions=names)
