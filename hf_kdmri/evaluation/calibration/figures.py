"""Figures of trust: reliability before and after a temperature, and what abstaining would gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike, NDArray

from hf_kdmri.evaluation.calibration.errors import (
    Floats,
    calibration_error_floor,
    checked_rows,
    expected_calibration_error,
    reliability_curve,
)
from hf_kdmri.evaluation.calibration.selective import risk_coverage
from hf_kdmri.evaluation.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)

# Models keep the colours of the other figures. Dashes tell curves apart where colours cannot.
_MODEL_STYLES = {"Teacher": (GREEN, "-"), "Student alone": (ORANGE, (0, (6, 2))), "Distilled student": (BLUE, "-")}
_OTHER_STYLES = ((VERMILLION, (0, (4, 1.5, 1, 1.5))), (SKY, (0, (1, 1))), (INK, (0, (8, 2))), (GREY, (0, (3, 1))))
_MOST_MODELS = len(_MODEL_STYLES) + len(_OTHER_STYLES)


def plot_reliability(
    scores: Mapping[str, ArrayLike],
    labels: ArrayLike,
    out: str | Path,
    *,
    bins: int = 10,
    adaptive: bool = False,
    unit: str = "slices",
    title: str = "How often the model is right when it is so sure",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Draw reliability diagrams side by side, such as before and after a temperature, each above its confidences.

    A dot is a bin of slices: mean confidence across, accuracy up, with Wilson's 95 % interval, which takes slices as
    independent. On the dashed line confidence is honest, below it the model is too sure. Beside it stand the expected
    calibration error of 15 bins of equal mass, whatever bins are drawn, and what chance alone would make of it.

    Args:
        scores: heading of each panel, in order, to its probabilities (N, C).
        labels: (N,), integers 0..C-1.
        out: Path without ending; folders are made.
        bins: drawn.
        adaptive: draw bins of equally many slices instead of equal width. Networks are sure of most slices, so that
            bins of equal mass crowd at the right.
        unit: what a row is, "slices" or "patients".
        title: Heading.
        subtitle: State the split and n here.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: no scores, or scores that do not go with the labels.
    """
    if not scores:
        raise ValueError("there are no scores to draw; expected at least one panel, such as {'before': probabilities}")
    classes = checked_rows(next(iter(scores.values())), labels)[0].shape[1]
    with figure_style():
        figure = new_figure(3.9 * len(scores) + 0.4, 5.2, title, subtitle)
        grid = figure.subplots(
            2,
            len(scores),
            sharex=True,
            sharey="row",
            squeeze=False,
            gridspec_kw={"height_ratios": (3, 1), "wspace": 0.1},
        )
        for (diagram, histogram), (name, probabilities) in zip(grid.T, scores.items(), strict=True):
            p, y = checked_rows(probabilities, labels)
            diagram.set_title(name, weight="bold")
            _draw_reliability(diagram, p, y, bins, adaptive)
            _draw_confidences(histogram, p.max(axis=1), bins)
        grid[0, 0].set(xlim=(10 * np.floor(10 / classes), 102), ylim=(0, 104), ylabel="accuracy [%]")
        grid[1, 0].set_ylabel(unit)
        return save_figure(figure, out)


def _draw_reliability(axes: Axes, p: Floats, y: NDArray[np.int64], bins: int, adaptive: bool) -> None:
    curve = reliability_curve(p, y, bins=bins, adaptive=adaptive)
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.vlines(100 * curve.score, 100 * curve.low, 100 * curve.high, color=BLUE, linewidth=1.4)
    axes.plot(100 * curve.score, 100 * curve.frequency, color=BLUE, marker="o", linestyle="", gid="reliability")
    numbers = {
        "accuracy": (p.argmax(axis=1) == y).mean(),
        "mean confidence": p.max(axis=1).mean(),
        "ECE": expected_calibration_error(p, y),
        "ECE by chance": calibration_error_floor(p),
    }
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    text = "\n".join(f"{name} {100 * value:.1f} %" for name, value in numbers.items())
    axes.text(100, 4, text, ha="right", va="bottom", linespacing=1.4, bbox=box)
    axes.grid()
    axes.set_axisbelow(True)


def _draw_confidences(axes: Axes, confidence: Floats, bins: int) -> None:
    """Draw counts in bins of equal width; they are written out too, for the rare ones are too low to be seen."""
    counts, ends = np.histogram(confidence, bins, (0, 1))
    bars = axes.bar(100 * ends[:-1], counts, 100 / bins, align="edge", color=SKY, edgecolor="white")
    axes.bar_label(bars, ["" if not count else f"{count:,}" for count in counts], size=8, padding=1)
    axes.set_xlabel("confidence [%]")
    axes.margins(y=0.2)


def plot_risk_coverage(
    models: Mapping[str, ArrayLike],
    labels: ArrayLike,
    out: str | Path,
    *,
    marks: Sequence[float] = (0.8, 0.9),
    unit: str = "slices",
    title: str = "Errors that are left when the least sure get no answer",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Draw the risk–coverage curves of several models in one axes, with some coverages marked.

    Args:
        models: name to probabilities (N, C), all of the same rows; at most seven.
        labels: (N,), integers 0..C-1.
        out: Path without ending; folders are made.
        marks: coverages that are marked; the legend gives each model's accuracy there.
        unit: what a row is, "slices" or "patients".
        title: Heading.
        subtitle: State the split and n here.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: no models, more than seven, or scores that do not go with the labels.
    """
    if not 0 < len(models) <= _MOST_MODELS:
        raise ValueError(f"there are {len(models)} models; expected 1 to {_MOST_MODELS}, or curves look alike")
    others = iter(_OTHER_STYLES + tuple(style for name, style in _MODEL_STYLES.items() if name not in models))
    with figure_style():
        figure = new_figure(7.4, 4.6, title, subtitle)
        axes = figure.subplots()
        for mark in marks:
            axes.axvline(100 * mark, color=PALE, linewidth=1.2, zorder=0)
        for name, probabilities in models.items():
            curve = risk_coverage(probabilities, labels)
            colour, dashes = _MODEL_STYLES.get(name) or next(others)
            errors = [100 * (1 - curve.accuracy_at(mark)) for mark in marks]
            stated = [(1.0, 100 * curve.risk[-1]), *sorted(zip(marks, errors, strict=True), reverse=True)]
            shown = ", ".join(f"{100 - error:.1f} % at {100 * mark:g} %" for mark, error in stated)
            axes.plot(
                100 * curve.coverage,
                100 * curve.risk,
                color=colour,
                linestyle=dashes,
                linewidth=2,
                label=f"{name}: {shown}",
                gid=f"curve-{name}",
            )
            axes.plot([100 * mark for mark in marks], errors, color=colour, marker="o", markersize=5, linestyle="")
        axes.set(xlim=(0, 101), xlabel=f"coverage: {unit} that get an answer [%]", ylabel="wrong answers [%]")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MultipleLocator(10))
        light_grid(axes, "y")
        figure.legend(loc="outside lower left", title="Accuracy at coverage", alignment="left")
        return save_figure(figure, out)
