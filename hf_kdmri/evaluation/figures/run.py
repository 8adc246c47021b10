"""The figures of a run: training curves, a grid of predictions, and the three models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

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
from hf_kdmri.evaluation.report import format_rows

STAGE_TITLES = {"teacher": "Teacher", "baseline": "Student alone (baseline)", "student": "Student, distilled"}
_MODEL_COLOURS = {"Teacher": GREEN, "Student alone": ORANGE, "Distilled student": BLUE}
# key of the row, heading in the results table, label of the axis, factor from the row's unit to the axis's
_PANELS = (
    ("accuracy", "Accuracy", "accuracy [%]", 100),
    ("macro_f1", "Macro F1", "macro F1 [%]", 100),
    ("parameters", "Parameters", "parameters [millions]", 1e-6),
    ("ms_per_image", "ms / image", "time per image [ms]", 1),
    ("flops", None, "operations per image [GFLOPs]", 1e-9),
    ("megabytes", None, "size on disk [MB]", 1),
)
_MEASURED_ONLY = ("flops", "megabytes")  # panels that are left out where no row has the number


def curve(history: Sequence[Mapping[str, Any]], stage: str, key: str) -> tuple[list[float], list[float]]:
    """Pick (epochs, values) of one quantity of one stage, in order of epochs."""
    points = [(row["epoch"], row[key]) for row in history if row.get("stage") == stage and row.get(key) is not None]
    points.sort(key=lambda point: point[0])
    return [epoch for epoch, _ in points], [value for _, value in points]


def _draw_curves(
    axes: Axes, train: tuple[list[float], list[float]], validation: tuple[list[float], list[float]]
) -> None:
    axes.plot(*train, color=SKY, linewidth=1.3, label="training", gid="train")
    axes.plot(*validation, color=BLUE, linewidth=2, marker="o", markersize=3.5, label="validation", gid="validation")
    light_grid(axes, "y")


def plot_training_curves(
    history: Sequence[Mapping[str, Any]], out: str | Path, *, subtitle: str = ""
) -> tuple[Path, Path]:
    """Plot loss and accuracy over epochs, training and validation, baseline and distillation side by side.

    Both columns share their axes. The distilled student's training curve is its cross-entropy term (`loss_ce`)
    where that was logged, since the whole loss holds terms that the baseline and the validation loss lack. The
    teacher's best validation accuracy is a dashed line. A history of the teacher alone shows the teacher.

    Args:
        history: Rows of `history.jsonl`: `stage`, `epoch`, and `loss`, `loss_ce`, `train_accuracy` or `eval_loss`,
            `eval_accuracy` (fractions).
        out: Path without ending; folders are made.
        subtitle: State the split and n here, e.g. "validation: 420 slices of 31 patients, fold 0".

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: No row has a value to plot.
    """
    keys = ("loss", "loss_ce", "train_accuracy", "eval_loss", "eval_accuracy")
    seen = {row.get("stage") for row in history if any(row.get(key) is not None for key in keys)}
    stages = [stage for stage in ("baseline", "student") if stage in seen] or [s for s in ("teacher",) if s in seen]
    if not stages:
        raise ValueError(
            f"the history has nothing to plot: {len(history)} rows, stages {sorted(map(str, seen))}; "
            f"expected rows of stage baseline, student or teacher with one of {', '.join(keys)}"
        )
    teacher_best = max(curve(history, "teacher", "eval_accuracy")[1], default=None)
    with figure_style():
        figure = new_figure(4.3 * len(stages) + 0.6, 5.0, "Loss and accuracy over training", subtitle)
        grid = figure.subplots(2, len(stages), sharex=True, sharey="row", squeeze=False)
        for column, stage in enumerate(stages):
            loss_axes, accuracy_axes = grid[:, column]
            cross_entropy = curve(history, stage, "loss_ce")
            _draw_curves(
                loss_axes,
                cross_entropy if cross_entropy[0] else curve(history, stage, "loss"),
                curve(history, stage, "eval_loss"),
            )
            loss_axes.set_title(STAGE_TITLES[stage], weight="bold")
            percent = [
                (epochs, [100 * value for value in values])
                for epochs, values in (curve(history, stage, key) for key in ("train_accuracy", "eval_accuracy"))
            ]
            _draw_curves(accuracy_axes, *percent)
            if teacher_best is not None:
                accuracy_axes.axhline(
                    100 * teacher_best,
                    color=GREEN,
                    linewidth=1.3,
                    linestyle=(0, (5, 3)),
                    label=f"teacher's best validation accuracy, {100 * teacher_best:.1f} %",
                    gid="teacher-best",
                )
            accuracy_axes.set_xlabel("epoch")
            accuracy_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0, 0].set_ylim(bottom=0)  # shared, so after the last column: it ends the fitting to the curves
        grid[0, 0].set_ylabel("cross-entropy [nats]")
        grid[1, 0].set_ylabel("accuracy [%]")
        handles, labels = grid[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return save_figure(figure, out)


def _grey_or_rgb(image: Any) -> np.ndarray:
    """Return an image as (H, W) or (H, W, 3), floats 0..1 kept and 8-bit values kept."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)):
        raise ValueError(f"an image has shape {pixels.shape}; expected (H, W), (H, W, 1) or (H, W, 3)")
    return pixels


def plot_prediction_grid(
    images: Sequence[Any],
    true: Sequence[int],
    pred: Sequence[int],
    probs: ArrayLike,
    class_names: Sequence[str],
    out: str | Path,
    *,
    columns: int = 5,
    title: str = "Predictions of the distilled student",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Show images with "Pred: x / True: y" and the probability of the prediction; wrong ones stand in a frame.

    Args:
        images: N PIL images or arrays, (H, W) or (H, W, 3), 8-bit or floats 0..1. The caller picks them: say how in
            the subtitle (drawn at random, or the worst).
        true: N label indices.
        pred: N predicted indices.
        probs: (N, C) probabilities.
        class_names: C names in label order.
        out: Path without ending; folders are made.
        columns: Images in a row.
        title: Heading.
        subtitle: State the split, n and how the images were picked; the count of wrong ones is added.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: No images, or inputs of different lengths.
    """
    probabilities = np.asarray(probs, dtype=float)
    lengths = {"images": len(images), "true": len(true), "pred": len(pred), "probs": len(probabilities)}
    if len(set(lengths.values())) != 1 or not len(images) or probabilities.shape[1:] != (len(class_names),):
        raise ValueError(
            f"expected equally many images, true, pred and probs, at least one, and probs of {len(class_names)} "
            f"columns; got {lengths} and probs of shape {probabilities.shape}"
        )
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    wrong_count = sum(int(t != p) for t, p in zip(true, pred, strict=True))
    counted = f"{wrong_count} of these {len(images)} wrong, framed"
    with figure_style():
        figure = new_figure(1.95 * columns + 0.2, 2.36 * rows, title, f"{subtitle}; {counted}" if subtitle else counted)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(images) :]:
            axes.set_axis_off()
        for index, axes in enumerate(grid[: len(images)]):
            wrong = true[index] != pred[index]
            pixels = _grey_or_rgb(images[index])
            axes.imshow(pixels, cmap="gray", **({"vmin": 0, "vmax": 255} if pixels.dtype == np.uint8 else {}))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(visible=bool(wrong), color=VERMILLION, linewidth=4)
            axes.set_gid(f"{'wrong' if wrong else 'right'}-{index}")
            axes.set_title(
                f"Pred: {class_names[pred[index]]} /\nTrue: {class_names[true[index]]}",
                size=8.5,
                color=VERMILLION if wrong else INK,
                weight="bold" if wrong else "normal",
                linespacing=1.25,
            )
            axes.text(
                0.03,
                0.03,
                f"p = {probabilities[index, pred[index]]:.2f}",
                transform=axes.transAxes,
                size=8,
                color="white",
                bbox={"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 1.5},
            )
        return save_figure(figure, out)


def plot_comparison(
    rows: Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    title: str = "Teacher, student alone and distilled student",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Compare the models as bars from zero: accuracy, macro F1, parameters, time and, where measured, FLOPs and size.

    Args:
        rows: As for `results_table`, in the order teacher, student alone, distilled student; one may be absent.
        out: Path without ending; folders are made.
        title: Heading.
        subtitle: State the split here; n is added when all rows have the same.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: No rows, or a row that lacks a required key.
    """
    headings, cells = format_rows(rows)
    counts = {row.get("n") for row in rows}
    unit = rows[0].get("unit", "slices")
    stated = f"n = {next(iter(counts)):,} {unit}" if len(counts) == 1 and None not in counts else ""
    with figure_style():
        panels = [
            panel for panel in _PANELS if panel[0] not in _MEASURED_ONLY or any(row.get(panel[0]) for row in rows)
        ]
        columns = 4 if len(panels) == 4 else 3
        lines = math.ceil(len(panels) / columns)
        heading_text = "; ".join(filter(None, (subtitle, stated)))
        figure = new_figure(10.5, lines * (0.42 * len(rows) + 0.75), title, heading_text)
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (key, heading, label, scale) in zip(grid, panels, strict=False):
            values = [scale * (row.get(key) or 0.0) for row in rows]
            axes.barh(
                range(len(rows)), values, height=0.62, color=[_MODEL_COLOURS.get(row["model"], GREY) for row in rows]
            )
            for y, value in enumerate(values):
                number = rows[y].get(key)
                text = "–" if number is None else f"{value:.3g}"
                if heading is not None:
                    text = cells[y][headings.index(heading)]
                label_box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axes.annotate(text, (value, y), (4, 0), textcoords="offset points", va="center", bbox=label_box)
            if scale == 100:
                axes.set(xlim=(0, 138), xticks=[0, 25, 50, 75, 100])
                axes.spines["bottom"].set_bounds(0, 100)
            else:
                axes.set_xlim(0, 1.38 * max(values) or 1)
            axes.set_xlabel(label, x=50 / 138 if scale == 100 else 0.5)
            axes.tick_params(axis="y", length=0, labelcolor=INK)
            axes.spines["left"].set_visible(False)
            light_grid(axes, "x")
        grid[0].set_yticks(range(len(rows)), [f"{row['model']}\n{row['architecture']}" for row in rows])
        grid[0].invert_yaxis()
        return save_figure(figure, out)
