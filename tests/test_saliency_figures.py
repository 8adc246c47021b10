from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hf_kdmri.evaluation.saliency.figures import draw_examples, plot_saliency_rates, plot_saliency_sheet
from hf_kdmri.evaluation.saliency.scores import SaliencyScores, SaliencySummary, saliency_scores

NAMES = ["meningioma", "pituitary"]


def text_of(svg: Path) -> str:
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    )


def material() -> tuple[dict, SaliencyScores]:
    """Five slices: a hit, a near miss, a miss, a map that is zero, and a hit of a wrong answer."""
    image, mask = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    image[8:56, 8:56] = 90
    mask[30:40, 30:40] = 255
    maps = np.zeros((5, 64, 64), np.float32)
    for number, point in {0: (35, 35), 1: (40, 35), 2: (12, 12), 4: (35, 35)}.items():
        maps[number][point] = 1
    images, masks = [Image.fromarray(image)] * 5, [Image.fromarray(mask)] * 5
    scores = saliency_scores(maps, images, masks)
    return {"images": images, "masks": masks, "maps": maps, "true": [0, 0, 0, 1, 1], "pred": [0, 0, 0, 1, 0]}, scores


def summary(hit: float, left_out: int = 0) -> SaliencySummary:
    return SaliencySummary(10, left_out, hit, min(1.0, hit + 0.1), 0.2, 0.04, 0.11)


def test_a_sheet_tells_hits_answers_and_how_slices_were_drawn(tmp_path) -> None:
    arguments, scores = material()
    png, svg = plot_saliency_sheet(
        **arguments, scores=scores, class_names=NAMES, out=tmp_path / "new" / "sheet.png", columns=3, wrong_columns=1,
        title="Where the teacher looks", subtitle="Grad-CAM, test slices, n = 5",
    )  # fmt: skip
    with Image.open(png) as image:
        assert min(image.size) > 300
    text = text_of(svg)
    for expected in (
        "Where the teacher looks",
        "Grad-CAM, test slices, n = 5; 2 slices of each class drawn at random (seed 0), then up to 1",
        "Pred: meningioma",
        "True: pituitary",
        "not scored: constant map",
        "highest pixel",
        "chance 4.3 %",
        "no more wrong answers",
    ):
        assert expected in text
    groups = {name: node for node in ElementTree.parse(svg).iter() if (name := node.get("id"))}
    framed = {
        name
        for name, node in groups.items()
        if name.startswith(("wrong-", "right-"))
        and any("stroke: #d55e00" in (child.get("style") or "") for child in node.iter())
    }
    assert framed == {"wrong-4"}
    assert "right-3" in groups


def test_verdicts(tmp_path) -> None:
    arguments, scores = material()
    _, svg = plot_saliency_sheet(
        **arguments, scores=scores, class_names=NAMES, out=tmp_path / "sheet", columns=4, wrong_columns=0
    )
    text = text_of(svg)
    assert all(verdict in text for verdict in ("hit", "near miss", "miss"))
    assert "more among its wrong answers" not in text


def test_examples_are_drawn_by_class_and_seed_and_wrong_ones_last() -> None:
    draw = np.random.default_rng(1)
    true, pred = draw.integers(0, 3, 300).tolist(), draw.integers(0, 3, 300).tolist()
    rows = draw_examples(true, pred, 3, columns=6, wrong_columns=2, seed=3)
    assert rows == draw_examples(true, pred, 3, columns=6, wrong_columns=2, seed=3)
    assert rows != draw_examples(true, pred, 3, columns=6, wrong_columns=2, seed=4)
    for number, row in enumerate(rows):
        assert len(set(row)) == 6
        assert all(true[index] == number for index in row)
        assert all(pred[index] != number for index in row[-2:])
    assert draw_examples([0, 1], [0, 1], 3) == [[0], [1], []]


def test_rates_state_chance_and_what_was_not_scored(tmp_path) -> None:
    groups = [*NAMES, "all classes"]
    png, svg = plot_saliency_rates(
        {
            "Teacher": dict(
                zip(groups, [summary(0.6), summary(0.3, left_out=2), summary(0.45, left_out=2)], strict=True)
            ),
            "Distilled student": {name: summary(float("nan") if name == "pituitary" else 0.51) for name in groups},
        },
        tmp_path / "rates",
        intervals={"Teacher": {"meningioma": {"hit": (0.5, 0.72)}}},
        subtitle="Grad-CAM, n = 20",
    )
    assert png.stat().st_size > 10_000
    text = text_of(svg)
    for expected in ("Teacher", "Distilled student", "chance", "60", "30", "51", "not", "at most 15 px from it"):
        assert expected in text
    assert "not scored: 2 of Teacher, 0 of Distilled student" in " ".join(text.split())


def test_figures_are_reproducible(tmp_path) -> None:
    arguments, scores = material()
    first, second = (
        plot_saliency_sheet(**arguments, scores=scores, class_names=NAMES, out=tmp_path / name)[1].read_bytes()
        for name in "ab"
    )
    assert first == second


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    arguments, scores = material()
    with pytest.raises(ValueError, match="expected equally many of each"):
        plot_saliency_sheet(**{**arguments, "pred": [0]}, scores=scores, class_names=NAMES, out=tmp_path / "x")
    with pytest.raises(ValueError, match="0 <= wrong_columns < columns"):
        draw_examples([0], [0], 1, columns=2, wrong_columns=2)
    one = {"a": summary(0.5), "all classes": summary(0.5)}
    for bad in ({}, {"m": one, "n": {"b": summary(0.5)}}, {str(number): one for number in range(6)}):
        with pytest.raises(ValueError, match="expected one to 5 models of the same classes"):
            plot_saliency_rates(bad, tmp_path / "x")
