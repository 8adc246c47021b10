"""Figures of where a classifier looks: a sheet of overlays, and hit rates against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from hf_kdmri.evaluation.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)
from hf_kdmri.evaluation.saliency.scores import (
    ALL_CLASSES,
    SaliencyScores,
    SaliencySummary,
    saliency_peak,
    summarize_saliency,
)

_COLOURS = (GREEN, ORANGE, BLUE, SKY, GREY)  # teacher, student alone and distilled student as in the other figures
_MAP_COLOURS = colormaps["inferno"]
_STRONGEST_ALPHA = 0.65
_PANELS = (
    ("hit", "chance", "Highest pixel in the tumour", "pointing hits [%]"),
    ("tolerant_hit", "tolerant_chance", "… or at most {tolerance:g} px from it", "pointing hits [%]"),
    ("energy", "chance", "Share of the map in the tumour", "energy [%]"),
)


def draw_examples(
    true: Sequence[int], pred: Sequence[int], classes: int, *, columns: int = 6, wrong_columns: int = 2, seed: int = 0
) -> list[list[int]]:
    """Draw which images a sheet shows: for each class some at random, then some at random among the wrong answers.

    Args:
        true: N labels, 0..C-1.
        pred: N predictions.
        classes: C.
        columns: images of each class, those among the wrong answers included.
        wrong_columns: how many of these are drawn among the wrong answers; where these do not suffice, fewer are.
        seed: of the draw.

    Returns:
        C lists of at most `columns` indices; those at random first.

    Raises:
        ValueError: different lengths, or counts that do not fit.

    Example:
        >>> draw_examples([0, 0, 0, 1], [0, 0, 1, 1], 2, columns=2, wrong_columns=1, seed=1)
        [[0, 2], [3]]
    """
    if len(true) != len(pred) or not 0 <= wrong_columns < columns:
        raise ValueError(
            f"expected equally many true and pred, and 0 <= wrong_columns < columns; got {len(true)}, {len(pred)}, "
            f"{wrong_columns} and {columns}"
        )
    labels, answers = np.asarray(true), np.asarray(pred)
    draw = np.random.default_rng(seed)
    rows: list[list[int]] = []
    for number in range(classes):
        shuffled = draw.permutation(np.flatnonzero(labels == number))
        chosen = shuffled[: columns - wrong_columns].tolist()
        wrong = [index for index in shuffled.tolist() if answers[index] != number and index not in chosen]
        rows.append(chosen + wrong[:wrong_columns])
    return rows


def plot_saliency_sheet(
    images: Sequence[Any],
    masks: Sequence[Any],
    maps: Sequence[Any],
    true: Sequence[int],
    pred: Sequence[int],
    scores: SaliencyScores,
    class_names: Sequence[str],
    out: str | Path,
    *,
    columns: int = 6,
    wrong_columns: int = 2,
    seed: int = 0,
    title: str = "Where the model looks",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Show slices with the saliency map over them, the tumour's outline and the map's highest pixel.

    One row per class. The map is the more opaque the higher it is. Wrong answers are framed. Only those drawn are read.

    Args:
        images: N slices, PIL images or arrays (H, W) or (H, W, 3).
        masks: N masks (H, W), not zero in the tumour.
        maps: N maps (h, w) in 0–1.
        true: N labels.
        pred: N predictions.
        scores: of these maps, for "hit" and "miss" and for the rates beside the rows.
        class_names: C names in label order.
        out: path without ending; folders are made.
        columns: images of each class.
        wrong_columns: how many of these are drawn among the wrong answers.
        seed: of the draw.
        title: heading; name the model.
        subtitle: state the method, the split and n; how the images were drawn is added.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: different lengths.
    """
    given: dict[str, Sized] = dict(images=images, masks=masks, maps=maps, true=true, pred=pred, scores=scores)
    lengths = {name: len(items) for name, items in given.items()}
    if len(set(lengths.values())) != 1 or not len(scores):
        raise ValueError(f"expected equally many of each, at least one; got {lengths}")
    rows = draw_examples(true, pred, len(class_names), columns=columns, wrong_columns=wrong_columns, seed=seed)
    summaries = summarize_saliency(scores, np.asarray(true), class_names)
    drawn = f"{columns - wrong_columns} slices of each class drawn at random (seed {seed})"
    if wrong_columns:
        drawn += f", then up to {wrong_columns} more among its wrong answers; wrong answers are framed"
    with figure_style():
        figure = new_figure(
            1.8 * columns + 1.3, 2.22 * len(rows) + 0.5, title, f"{subtitle}; {drawn}" if subtitle else drawn
        )
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for name, line, indices in zip(class_names, grid, rows, strict=True):
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for axes in line[len(indices) :]:
                axes.text(0.5, 0.5, "no more\nwrong answers", color=GREY, size=8, ha="center", va="center")
            for axes, index in zip(line, indices, strict=False):
                _draw_overlay(axes, images[index], masks[index], maps[index])
                wrong = true[index] != pred[index]
                axes.spines[:].set(visible=bool(wrong), color=VERMILLION, linewidth=4)
                axes.set_gid(f"{'wrong' if wrong else 'right'}-{index}")
                axes.set_title(
                    f"Pred: {class_names[pred[index]]}\nTrue: {name}\n{_verdict(scores, index)}",
                    size=8,
                    color=VERMILLION if wrong else INK,
                    linespacing=1.2,
                )
            line[0].set_ylabel(
                _row_label(name, summaries[name]), size=9, color=INK, rotation=0, ha="right", va="center"
            )
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), _MAP_COLOURS), ax=grid, shrink=0.5, aspect=30, pad=0.015, ticks=[0, 0.5, 1]
        )
        bar.set_label("evidence for the class, share of the map's maximum", size=8)
        bar.outline.set_visible(False)
        handles = [
            Line2D([], [], color=SKY, linewidth=1.6, label="outline of the tumour mask"),
            Line2D(
                [],
                [],
                color="white",
                marker="X",
                markeredgecolor=INK,
                markersize=8,
                linestyle="",
                label="highest pixel",
            ),
            Patch(facecolor="none", edgecolor=VERMILLION, linewidth=3, label="wrong answer"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return save_figure(figure, out)


def plot_saliency_rates(
    summaries: Mapping[str, Mapping[str, SaliencySummary]],
    out: str | Path,
    *,
    intervals: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]] | None = None,
    tolerance: float = 15.0,
    title: str = "Does the model look at the tumour?",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Compare hit rates and energy with chance, per class and model.

    Args:
        summaries: for each model what `summarize_saliency` returns, at most five, all of the same classes.
        out: path without ending; folders are made.
        intervals: (low, high) in 0–1 by model, class and value (`hit`, `tolerant_hit`, `energy`), drawn as whiskers.
        tolerance: that the scores were made with, pixels of a 512-pixel slice.
        title: heading.
        subtitle: state the method, the split and n; what chance is and how many were not scored is added.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: no model, more than five, or models of different classes.
    """
    names = [list(summary) for summary in summaries.values()]
    if not 1 <= len(names) <= len(_COLOURS) or any(other != names[0] for other in names):
        raise ValueError(
            f"expected one to {len(_COLOURS)} models of the same classes; got the models {list(summaries)} with the "
            f"classes {names}"
        )
    left_out = {model: summary[ALL_CLASSES].left_out for model, summary in summaries.items()}
    told = "chance: the share of the head that the tumour, or the tumour with its margin, takes"
    if any(left_out.values()):
        told += "; not scored: " + ", ".join(f"{count} of {model}" for model, count in left_out.items())
    width = 0.8 / len(summaries)
    with figure_style():
        figure = new_figure(
            max(9.5, 3 * (0.9 + 0.24 * len(names[0]) * len(summaries))),
            3.0,
            title,
            f"{subtitle}; {told}" if subtitle else told,
        )
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        for axes, (value, chance, heading, label) in zip(panels, _PANELS, strict=True):
            for position, (model, summary) in enumerate(summaries.items()):
                centres = np.arange(len(names[0])) + (position - (len(summaries) - 1) / 2) * width
                whiskers = (intervals or {}).get(model, {})
                _draw_bars(axes, centres, width, summary, value, chance, _COLOURS[position], whiskers)
            axes.set_title(heading.format(tolerance=tolerance), weight="bold")
            axes.set_xticks(range(len(names[0])), [name.replace(" ", "\n") for name in names[0]], color=INK)
            axes.tick_params(axis="x", length=0)
            axes.set_ylabel(label)
            axes.margins(y=0.12)  # room for the numbers above the bars
            light_grid(axes, "y")
        handles: list[Any] = [Patch(color=c, label=model) for model, c in zip(summaries, _COLOURS, strict=False)]
        handles.append(Line2D([], [], color=INK, linewidth=2, label="chance"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return save_figure(figure, out)


def _draw_bars(
    axes: Axes,
    centres: NDArray[np.floating],
    width: float,
    summary: Mapping[str, SaliencySummary],
    value: str,
    chance: str,
    colour: str,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
) -> None:
    for centre, (name, row) in zip(centres, summary.items(), strict=True):
        height, expected = 100 * getattr(row, value), 100 * getattr(row, chance)
        if np.isnan(height):
            axes.annotate("not\nscored", (centre, 0), (0, 3), textcoords="offset points", ha="center", size=7)
            continue
        axes.bar(centre, height, 0.92 * width, color=colour)
        top = height
        if value in intervals.get(name, {}):
            low, high = (100 * bound for bound in intervals[name][value])
            axes.plot([centre, centre], [low, high], color=INK, linewidth=1)
            top = max(top, high)
        for line_colour, thickness in (("white", 4), (INK, 2)):
            axes.hlines(expected, centre - 0.46 * width, centre + 0.46 * width, color=line_colour, linewidth=thickness)
        axes.annotate(
            f"{height:.0f}", (centre, max(top, expected)), (0, 3), textcoords="offset points", ha="center", size=8
        )


def _draw_overlay(axes: Axes, image: Any, mask: Any, saliency: Any) -> None:
    pixels, inside, values = np.asarray(image), np.asarray(mask) != 0, np.asarray(saliency, dtype=np.float32)
    height, width = inside.shape
    if values.shape != inside.shape:  # as saliency_scores does
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    low, high = (0, 255) if pixels.dtype == np.uint8 else (None, None)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high)
    axes.imshow(values, cmap=_MAP_COLOURS, vmin=0, vmax=1, alpha=_STRONGEST_ALPHA * np.clip(values, 0, 1) ** 0.5)
    if inside.any():
        axes.contour(inside, levels=[0.5], colors=SKY, linewidths=1.4)
    if np.ptp(values):
        row, column = saliency_peak(values)
        axes.plot(column, row, marker="X", markersize=8, markerfacecolor="white", markeredgecolor=INK, linestyle="")


def _verdict(scores: SaliencyScores, index: int) -> str:
    if scores.problems[index]:
        return f"not scored: {scores.problems[index]}"
    if scores.hit[index]:
        return "hit"
    return "near miss" if scores.tolerant_hit[index] else "miss"


def _row_label(name: str, summary: SaliencySummary) -> str:
    return f"{name}\nhits {100 * summary.hit:.1f} %\nchance {100 * summary.chance:.1f} %\nn = {summary.n}"
