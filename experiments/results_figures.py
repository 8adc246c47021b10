#!/usr/bin/env python
"""Draw the two figures of RESULTS.md and its pages from the figures that `pool_runs.py` wrote beside this file.

    python experiments/results_figures.py --out docs/figures

`results.png` shows every test accuracy and what was gained over the same student alone, with 95 % intervals over
patient groups, by the split that they were measured on; `results_epochs.png` the validation accuracy after each epoch.
SVG files are written as well, for a talk.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_kdmri.evaluation.figures.style import (
    GREY,
    INK,
    MODEL_STYLES,
    SKY,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)

HERE = Path(__file__).parent
BLOCKS = {
    "short_random": "Slices at random, 10 epochs\n(leaks: for comparison only)",
    "short_cvind": "The authors' folds, 10 epochs\n(repeat scans may be divided)",
    "short_folds": "Patient groups, 10 epochs\n(seed 42)",
    "short_strong": "Patient groups, 10 epochs\n(seeds 43 and 44)",
    "short_larger": "Patient groups, 10 epochs\n(224 px, minus 128; seed 44)",
    "folds": "Patient groups, 25 epochs\n(three seeds alone)",
}
SHOWN = {"short_larger": ("alone", "px224")}  # of the others all
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "teacher": ("Teacher", MODEL_STYLES["teacher"]),
    "strong": ("Better teacher (masks, 224 px)", {**MODEL_STYLES["teacher"], "markerfacecolor": "white"}),
    "alone": ("Student alone", MODEL_STYLES["baseline"]),
    "px224": ("Student alone, 224 px", {**MODEL_STYLES["baseline"], "markerfacecolor": "white"}),
    "hinton": ("Distilled, Hinton's loss", MODEL_STYLES["student"]),
    "taught": ("Distilled, better teacher", {**MODEL_STYLES["student"], "markerfacecolor": "white"}),
    "fusion": ("Distilled, our fusion", {"color": SKY, "marker": "D", "linestyle": ":"}),
}


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/figures", help="folder (default: %(default)s)")
    out = parser.parse_args().out
    told = {name: json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")) for name in BLOCKS}
    with figure_style():
        for path in (*accuracies(told, out / "results"), *epochs(told["short_folds"], out / "results_epochs")):
            print(path)


def accuracies(told: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Accuracy by split and model, and the differences to the student alone."""
    rows = [(block, arm) for block in BLOCKS for arm in SHOWN.get(block, ARMS) if arm in told[block]["entries"]]
    places, place = {}, 0.0
    for number, (block, arm) in enumerate(rows):
        place += 1.0 if number and rows[number - 1][0] == block else 1.8
        places[block, arm] = place
    figure = new_figure(
        9.4, 0.27 * place + 1.1, "Accuracy on test slices, and what a teacher or a larger input adds",
        "MobileNetV2 (2.2 M), alone or taught by EfficientNet-Lite0 (3.4 M), Figshare slices re-encoded to 8 bit; "
        "bars are 95 % intervals over patient groups",
    )  # fmt: skip
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    for (block, arm), y in places.items():
        estimate = told[block]["entries"][arm]["accuracy"]
        dot(left, estimate, y, arm)
        left.annotate(f"{100 * estimate['value']:.1f}", (1, y), xycoords=("axes fraction", "data"), va="center",
                      ha="right", color=GREY)  # fmt: skip
        if arm != "alone" and f"{arm}:alone" in told[block]["differences"]:
            dot(right, told[block]["differences"][f"{arm}:alone"]["accuracy"], y, arm)
    left.set_yticks([min(y for (of, _), y in places.items() if of == block) for block in BLOCKS], BLOCKS.values())
    left.tick_params(axis="y", length=0, labelcolor=INK)
    left.set_ylim(place + 0.8, 1)
    left.set_xlim(right=101)
    left.set_xlabel("accuracy [%]")
    right.set_xlabel("minus the student alone [points]")
    right.axvline(0, color=GREY, linewidth=0.8)
    right.tick_params(axis="y", length=0)
    for axes in (left, right):
        light_grid(axes, "x")
    handles = [Line2D([], [], label=title, **{**style, "linestyle": "-"}) for title, style in ARMS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return save_figure(figure, out)


def dot(axes: Axes, estimate: dict[str, Any], y: float, arm: str) -> None:
    """A value in percent and its interval as a bar."""
    low, high = estimate["interval"]
    style = ARMS[arm][1]
    axes.plot([100 * low, 100 * high], [y, y], color=style["color"], linewidth=1.8, solid_capstyle="butt")
    axes.plot([100 * estimate["value"]], [y], markersize=5.5, **style)


def epochs(told: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Validation accuracy after each epoch, a panel for each fold."""
    figure = new_figure(
        11, 2.5, "Does a teacher get there in fewer epochs?",
        "Validation accuracy of the same student after each epoch, short schedule, one seed; the line is the best that "
        "it reaches alone",
    )  # fmt: skip
    grid = figure.subplots(1, 5, sharey=True)
    for fold, axes in enumerate(grid):
        for arm in ("alone", "hinton", "fusion"):
            title, style = ARMS[arm]
            values = [100 * value for value in told["runs"][f"{arm}-f{fold}-s42"]["validation_accuracy"]]
            axes.plot(range(1, len(values) + 1), values, label=title, markersize=3.5, linewidth=1.5, **style)
            if arm == "alone":
                axes.axhline(max(values), color=GREY, linewidth=0.8)
        axes.set_title(f"Fold {fold}", weight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        light_grid(axes, "y")
    grid[0].set_ylabel("accuracy [%]")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return save_figure(figure, out)


if __name__ == "__main__":
    main()
