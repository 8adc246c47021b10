"""Figures of how training went: the generalisation gap, and how soon each model reached an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from hf_kdmri.evaluation.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)

_STAGES = {"teacher": ("Teacher", GREEN), "baseline": ("Student alone", ORANGE), "student": ("Distilled student", BLUE)}


def plot_convergence(
    convergence: Mapping[str, Mapping[str, Any]], out: str | Path, *, subtitle: str = ""
) -> tuple[Path, Path]:
    """Two panels: training minus validation accuracy over epochs, and the epoch at which each accuracy was reached.

    Args:
        convergence: of one run, as `hf_kdmri.evaluation.convergence.convergence` gives it.
        out: path without ending; folders are made.
        subtitle: state the split and n here.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: no stage has a validation.
    """
    stages = [stage for stage in _STAGES if stage in convergence]
    if not stages:
        raise ValueError("there is no stage with a validation accuracy to plot")
    with figure_style():
        figure = new_figure(9.2, 3.7, "Generalisation gap and convergence", subtitle)
        gaps, times = figure.subplots(1, 2)
        gaps.axhline(0, color=GREY, linewidth=0.8)
        for stage in stages:
            name, colour = _STAGES[stage]
            gap = convergence[stage]["gap"]
            trend = "" if gap["trend"] is None else f", trend {100 * gap['trend']:+.2f} points per epoch"
            gaps.plot(
                gap["epochs"], [100 * value for value in gap["gap"]], color=colour, linewidth=1.8, label=name + trend
            )
        gaps.set(xlabel="epoch", ylabel="training − validation accuracy [points]")
        gaps.xaxis.set_major_locator(MaxNLocator(integer=True))
        light_grid(gaps, "y")
        figure.legend(*gaps.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
        _draw_times(times, convergence, stages)
        return save_figure(figure, out)


def _draw_times(axes: Any, convergence: Mapping[str, Mapping[str, Any]], stages: list[str]) -> None:
    accuracies = [row["accuracy"] for row in convergence[stages[0]]["time_to"]]
    height = 0.8 / len(stages)
    longest = max((row["epoch"] or 0 for stage in stages for row in convergence[stage]["time_to"]), default=0)
    for place, stage in enumerate(stages):
        name, colour = _STAGES[stage]
        for index, row in enumerate(convergence[stage]["time_to"]):
            y = index + (place - (len(stages) - 1) / 2) * height
            if row["epoch"] is None:
                axes.annotate(
                    "not reached", (0, y), (4, 0), textcoords="offset points", va="center", color=GREY, size=7
                )
                continue
            axes.barh(y, row["epoch"], height=0.92 * height, color=colour, label=name if index == 0 else None)
            seconds = "" if row["seconds"] is None else f", {duration(row['seconds'])}"
            axes.annotate(
                f"{row['epoch']:g}{seconds}", (row["epoch"], y), (4, 0), textcoords="offset points", va="center", size=7
            )
    axes.set_yticks(range(len(accuracies)), [f"{100 * accuracy:g} %" for accuracy in accuracies], color=INK)
    axes.set_ylim(len(accuracies) - 0.5, -0.5)
    axes.set(xlabel="epochs (and time) until validation accuracy", xlim=(0, 1.3 * longest or 1))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    light_grid(axes, "x")


def duration(seconds: float) -> str:
    """Seconds in words: "90 s" below two minutes, else "3.4 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
