"""The charts of the explore sheet, as SVG that is written into the page and follows its light or dark colours."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.evaluation.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, figure_style, light_grid

CLASS_COLOURS = (BLUE, ORANGE, GREEN)
_WIDTH, _HEIGHT = 4.6, 2.9  # inches; narrow, so that the text stays readable on a phone
_PAGE_COLOURS = {INK: "ink", GREY: "grey", PALE: "pale", BLUE: "blue", ORANGE: "orange", GREEN: "green"}


def slices_per_patient(pids: Sequence[str], labels: np.ndarray) -> str:
    """Draw how many PIDs have how many slices, stacked by class."""
    label_of = dict(zip(pids, labels.tolist(), strict=True))
    counts = Counter(pids)
    per_class = [[counts[pid] for pid in counts if label_of[pid] == label] for label in range(len(LABEL_NAMES))]
    edges = np.arange(0.5, max(counts.values()) + 2.5, 2)
    with figure_style():
        figure, axes = _new_chart()
        axes.hist(per_class, bins=edges.tolist(), stacked=True, color=CLASS_COLOURS, label=LABEL_NAMES, rwidth=0.9)
        axes.set(xlabel="slices of one PID", ylabel="PIDs")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        light_grid(axes, "y")
        return _svg(figure, "patients", "Histogram of the number of slices per PID, stacked by class")


def class_by_fold(labels: np.ndarray, groups: Sequence[str], tests: Sequence[np.ndarray]) -> str:
    """Draw the test slices of each fold, stacked by class.

    Args:
        labels: Class of each slice.
        groups: Patient group of each slice.
        tests: Per fold, the indices of its test slices.
    """
    table = np.array([np.bincount(labels[test], minlength=len(LABEL_NAMES)) for test in tests])
    patients = [len({groups[index] for index in test}) for test in tests]
    with figure_style():
        figure, axes = _new_chart()
        below = np.zeros(len(tests))
        for label, name in enumerate(LABEL_NAMES):
            bars = axes.bar(range(len(tests)), table[:, label], 0.7, below, color=CLASS_COLOURS[label], label=name)
            numbers = [str(count) if count else "" for count in table[:, label]]
            axes.bar_label(bars, numbers, label_type="center", color="white", fontsize=8, fontweight="bold")
            below += table[:, label]
        axes.set_xticks(range(len(tests)), [f"fold {fold}\n{count} groups" for fold, count in enumerate(patients)])
        axes.set(ylabel="test slices", ylim=(0, below.max() * 1.16))
        axes.legend(ncols=3, loc="upper center", columnspacing=1.2, handlelength=1.2)
        axes.tick_params(axis="x", length=0)
        light_grid(axes, "y")
        return _svg(figure, "folds", "Stacked bars: test slices of each fold by class")


def raw_ranges(ranges: Mapping[str, Sequence[float]]) -> str:
    """Draw where the raw intensities of the slices end, and which of them become 0 and 255.

    Args:
        ranges: The columns `raw_min`, `raw_max`, `window_low` and `window_high`.
    """
    top = max(ranges["raw_max"])
    edges = np.linspace(min(*ranges["raw_min"], 0), top * 1.0001 or 1, 61).tolist()
    with figure_style():
        figure, axes = _new_chart()
        axes.hist(ranges["raw_max"], edges, color=GREY, alpha=0.45, label="raw maximum")
        axes.hist(ranges["window_high"], edges, histtype="step", color=BLUE, linewidth=1.6, label="becomes 255")
        axes.hist(ranges["window_low"], edges, histtype="step", color=ORANGE, linewidth=1.6, label="becomes 0")
        axes.set(xlabel="raw intensity of the file", ylabel="slices (log scale)", yscale="log", ylim=(0.7, None))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend()
        light_grid(axes, "y")
        return _svg(figure, "ranges", "Histograms of raw maximum, window low and window high over the slices")


def intensities(histograms: np.ndarray, labels: np.ndarray) -> str:
    """Draw the mean histogram of the 8-bit intensities of each class.

    Args:
        histograms: (N, 256) counts of pixels.
        labels: Class of each slice.
    """
    shares = histograms / histograms.sum(axis=1, keepdims=True)
    present = set(labels.tolist())
    with figure_style():
        figure, axes = _new_chart()
        for label, name in enumerate(LABEL_NAMES):
            if label not in present:
                continue
            mean = shares[labels == label].mean(axis=0).reshape(64, 4).sum(axis=1)  # 4 levels per step
            axes.stairs(mean, np.arange(0, 257, 4), color=CLASS_COLOURS[label], linewidth=1.6, label=name)
        axes.set(xlabel="8-bit intensity", ylabel="share of pixels (log scale)", yscale="log", xlim=(0, 256))
        axes.set_xticks(range(0, 257, 64))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.legend()
        light_grid(axes, "y")
        return _svg(figure, "intensities", "Mean histogram of 8-bit intensities by class")


def neighbor_accuracy(per_fold: Mapping[str, Sequence[float]], pooled: Mapping[str, float], frequent: float) -> str:
    """Draw the accuracy of the 1-nearest-neighbour match: pooled as bars, each fold as a dot.

    Args:
        per_fold: Accuracy of each fold, by config.
        pooled: Accuracy over the test slices of all folds, by config.
        frequent: Share of the most frequent class, what a constant answer scores.
    """
    rows = range(len(pooled))
    with figure_style():
        figure, axes = _new_chart(0.55 + 0.6 * len(pooled))
        colours = [ORANGE if config == "random_slices" else BLUE for config in pooled]
        axes.barh(rows, list(pooled.values()), 0.62, color=colours)
        for row, config in enumerate(pooled):
            axes.plot(per_fold[config], [row + 0.2] * len(per_fold[config]), "o", color=INK, markersize=3)
            axes.text(0.02, row - 0.02, f"{pooled[config]:.1%}", color="white", weight="bold", va="center")
        side = "left" if frequent < 0.5 else "right"
        axes.axvline(frequent, color=GREY, linestyle="--", linewidth=1)
        axes.text(
            frequent + (0.01 if frequent < 0.5 else -0.01),
            -0.52,
            f"most frequent class: {frequent:.1%}",
            size=8,
            color=GREY,
            ha=side,
            va="bottom",
        )
        axes.set_yticks(rows, list(pooled), color=INK)
        axes.set(xlim=(0, 1), ylim=(len(pooled) - 0.5, -0.8), xlabel="1-NN accuracy on test slices (dots: folds)")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.tick_params(axis="y", length=0)
        light_grid(axes, "x")
        return _svg(figure, "neighbors", "Bars: 1-nearest-neighbour accuracy by way of splitting")


def _new_chart(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, description: str) -> str:
    """Write the figure as an `<svg>` element with ids of its own and the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    head = rf'<svg viewBox="\1" role="img" aria-label="{description}">'
    svg = re.sub(r'<svg .*?viewBox="([^"]*)".*?>', head, svg, count=1, flags=re.DOTALL)
    for colour, variable in _PAGE_COLOURS.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
