from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hf_kdmri.evaluation import plot_comparison, plot_prediction_grid, plot_training_curves
from hf_kdmri.evaluation.figures import fold_curves, run
from hf_kdmri.evaluation.figures.fold_curves import plot_fold_curves

NAMES = ["meningioma", "glioma", "pituitary"]


def text_of(svg: Path) -> str:
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    )


def history(*stages: str) -> list[dict]:
    rows = []
    for stage in stages:
        for epoch in range(1, 5):
            rows.append(
                {"stage": stage, "epoch": epoch - 0.5, "step": 9 * epoch, "loss": 3 / epoch, "loss_ce": 1 / epoch}
            )
            rows.append({"stage": stage, "epoch": epoch - 0.5, "step": 9 * epoch, "train_accuracy": 1 - 0.5 / epoch})
            rows.append({"stage": stage, "epoch": float(epoch), "step": 9 * epoch, "eval_loss": 1.1 / epoch})
            rows[-1] |= {"eval_accuracy": 0.9 - 0.4 / epoch, "eval_macro_f1": 0.8}
    return rows


def check_files(paths: tuple[Path, Path], stem: Path) -> str:
    png, svg = paths
    assert (png, svg) == (stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg"))
    with Image.open(png) as image:
        assert min(image.size) > 200
        assert image.getpixel((1, 1))[:3] == (255, 255, 255)
    return text_of(svg)


@pytest.mark.parametrize(
    ("stages", "titles"),
    [
        (("teacher", "baseline", "student"), ["Student alone (baseline)", "Student, distilled", "80.0 %"]),
        (("teacher", "student"), ["Student, distilled", "80.0 %"]),
        (("baseline", "student"), ["Student alone (baseline)", "Student, distilled"]),
        (("teacher",), ["Teacher"]),
    ],
)
def test_training_curves_of_whatever_stages_there_are(stages, titles, tmp_path) -> None:
    out = tmp_path / "new" / "curves"
    text = check_files(plot_training_curves(history(*stages), out, subtitle="validation: 433 slices, fold 0"), out)
    for expected in [*titles, "validation: 433 slices, fold 0", "epoch", "accuracy [%]", "cross-entropy [nats]"]:
        assert expected in text
    assert ("Student alone (baseline)" in text) == ("baseline" in stages)
    assert ("teacher's best" in text) == ("teacher" in stages)


def test_no_curve_is_cut_off_by_those_of_another_model(tmp_path, monkeypatch) -> None:
    rows = history("baseline", "student")
    rows[-1]["eval_loss"] = 40.0
    shown = []
    for module, plot in ((run, plot_training_curves), (fold_curves, lambda h, out: plot_fold_curves({"0": h}, out))):
        monkeypatch.setattr(module, "save_figure", lambda figure, out: shown.append(figure.axes[0].get_ylim()))
        plot(rows, tmp_path / "x")
    assert all(bottom == 0 and top > 40 for bottom, top in shown) and len(shown) == 2


def test_every_fold_has_its_curves(tmp_path) -> None:
    histories = {str(fold): history("teacher", "baseline", "student") for fold in range(5)}
    del histories["3"][-1]["eval_accuracy"]
    paths = plot_fold_curves(histories, tmp_path / "curves", subtitle="folds 0, 1, 2, 3, 4")
    text = check_files(paths, tmp_path / "curves")
    for expected in (*(f"fold {fold}" for fold in range(5)), "Teacher", "Student, distilled", "validation", "training"):
        assert expected in text
    lines = [node.get("id", "") for node in ElementTree.parse(paths[1]).iter()]
    for fold in range(5):
        assert lines.count(f"validation-fold-{fold}") == lines.count(f"train-fold-{fold}") == 6, "3 models, 2 panels"
    with pytest.raises(ValueError, match="folds a, b have no validation accuracy"):
        plot_fold_curves({"a": [], "b": [{"stage": "student", "epoch": 1.0}]}, tmp_path / "x")


def test_a_history_without_curves_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nothing to plot: 1 rows, stages \['finetune'\]|nothing to plot"):
        plot_training_curves([{"stage": "student", "epoch": 1.0, "step": 3}], tmp_path / "x")


def test_figures_are_reproducible(tmp_path) -> None:
    first, second = (plot_training_curves(history("student"), tmp_path / name)[1].read_bytes() for name in "ab")
    assert first == second


def test_wrong_predictions_and_only_those_are_framed(tmp_path) -> None:
    images = [
        Image.new("L", (20, 20), 90),
        np.zeros((20, 20, 3), np.uint8),
        np.full((20, 20), 0.5),
        np.zeros((9, 9, 1)),
    ]
    true, pred = [0, 1, 2, 1], [0, 2, 2, 0]
    probabilities = np.full((4, 3), 0.1)
    probabilities[range(4), pred] = 0.8
    out = tmp_path / "grid.png"
    text = check_files(
        plot_prediction_grid(images, true, pred, probabilities, NAMES, out, columns=3, subtitle="test split, n = 4"),
        tmp_path / "grid",
    )
    for expected in ("Pred: pituitary /", "True: glioma", "p = 0.80", "test split, n = 4; 2 of these 4 wrong, framed"):
        assert expected in text
    nodes = ElementTree.parse(tmp_path / "grid.svg").iter()
    groups = {name: node for node in nodes if (name := node.get("id"))}
    framed = {
        name
        for name, node in groups.items()
        if name.startswith(("wrong-", "right-"))
        and any("stroke: #d55e00" in (child.get("style") or "") for child in node.iter())
    }
    assert framed == {"wrong-1", "wrong-3"}
    assert {"right-0", "right-2"} <= set(groups)


def test_names_are_shown_as_they_are(tmp_path) -> None:
    names = ["<script>$x^2$", "a & b"]
    _, svg = plot_prediction_grid([np.zeros((8, 8))], [0], [1], [[0.2, 0.8]], names, tmp_path / "g")
    assert "True: <script>$x^2$" in text_of(svg)
    assert b"<script>" not in svg.read_bytes()


@pytest.mark.parametrize("change", [{"true": [0]}, {"probs": [[0.5, 0.5]] * 2}, {"images": []}])
def test_grid_refuses_inputs_that_do_not_match(change, tmp_path) -> None:
    arguments = {"images": [np.zeros((8, 8))] * 2, "true": [0, 1], "pred": [0, 1], "probs": np.full((2, 3), 1 / 3)}
    with pytest.raises(ValueError, match="expected equally many"):
        plot_prediction_grid(**{**arguments, **change}, class_names=NAMES, out=tmp_path / "g")


def test_an_image_of_odd_shape_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8\)"):
        plot_prediction_grid([np.zeros((2, 8, 8))], [0], [0], [[1, 0, 0]], NAMES, tmp_path / "g")


def test_comparison_states_numbers_units_and_n(tmp_path) -> None:
    rows = [
        {
            "model": "Teacher",
            "architecture": "big",
            "accuracy": 0.943,
            "macro_f1": 0.93,
            "parameters": 4_870_000,
            "n": 612,
        },
        {
            "model": "Distilled student",
            "architecture": "tiny",
            "accuracy": 0.92,
            "macro_f1": 0.9,
            "ms_per_image": 4.1,
            "n": 612,
        },
    ]
    out = tmp_path / "comparison"
    text = check_files(plot_comparison(rows, out, subtitle="test split of fold 0"), out)
    for expected in ("94.3 %", "4.87 M", "4.1", "–", "accuracy [%]", "parameters [millions]", "time per image [ms]"):
        assert expected in text
    assert "test split of fold 0; n = 612 slices" in text
    assert "Distilled student" in text
