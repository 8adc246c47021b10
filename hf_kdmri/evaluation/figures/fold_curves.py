"""The training curves of several folds in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_kdmri.evaluation.figures.run import STAGE_TITLES, curve
from hf_kdmri.evaluation.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)

_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, SKY)  # a colour for each of five folds; more begin again


def plot_fold_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], out: str | Path, *, subtitle: str = ""
) -> tuple[Path, Path]:
    """Plot loss and accuracy over epochs, a line for each fold and a column for each model.

    Args:
        histories: Of each fold by its name: rows of `history.jsonl`, as for `plot_training_curves`.
        out: Path without ending; folders are made.
        subtitle: State the split here.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: No fold has a curve.
    """
    drawn = {row.get("stage") for rows in histories.values() for row in rows if row.get("eval_accuracy") is not None}
    stages = [stage for stage in STAGE_TITLES if stage in drawn]
    if not stages:
        raise ValueError(f"the histories of the folds {', '.join(histories)} have no validation accuracy to plot")
    with figure_style():
        figure = new_figure(3.9 * len(stages) + 0.6, 5.0, "Loss and accuracy over training, fold by fold", subtitle)
        grid = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
        for column, stage in enumerate(stages):
            loss, accuracy = grid[:, column]
            for number, (name, rows) in enumerate(histories.items()):
                colour = _COLOURS[number % len(_COLOURS)]
                trained = curve(rows, stage, "loss_ce")
                _draw(loss, trained if trained[0] else curve(rows, stage, "loss"), colour, "train", name, 1)
                _draw(loss, curve(rows, stage, "eval_loss"), colour, "validation", name, 1)
                _draw(accuracy, curve(rows, stage, "train_accuracy"), colour, "train", name, 100)
                _draw(accuracy, curve(rows, stage, "eval_accuracy"), colour, "validation", name, 100)
            loss.set_title(STAGE_TITLES[stage], weight="bold")
            accuracy.set_xlabel("epoch")
            accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
            for axes in (loss, accuracy):
                light_grid(axes, "y")
        grid[0, 0].set_ylim(bottom=0)  # shared, so after the last column: it ends the fitting to the curves
        grid[0, 0].set_ylabel("cross-entropy [nats]")
        grid[1, 0].set_ylabel("accuracy [%]")
        folds = [
            Line2D([], [], color=_COLOURS[number % len(_COLOURS)], linewidth=2, label=f"fold {name}")
            for number, name in enumerate(histories)
        ]
        kinds = [Line2D([], [], color=INK, label="validation"), Line2D([], [], color=INK, ls=":", label="training")]
        figure.legend(handles=[*folds, *kinds], loc="outside lower center", ncols=len(folds) + 2)
        return save_figure(figure, out)


def _draw(axes: Axes, points: tuple[list[float], list[float]], colour: str, kind: str, fold: str, scale: float) -> None:
    style: dict[str, Any] = {"ls": ":", "linewidth": 1.3} if kind == "train" else {"linewidth": 1.7}
    axes.plot(points[0], [scale * value for value in points[1]], color=colour, gid=f"{kind}-fold-{fold}", **style)
