"""Confusion matrices of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_kdmri.evaluation.figures.style import figure_style, new_figure, save_figure


def plot_confusion_matrices(
    matrices: Mapping[str, Sequence[Sequence[int]]],
    class_names: Sequence[str],
    out: str | Path,
    *,
    title: str = "What was taken for what",
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Draw one matrix per model: rows true, columns predicted; counts, shaded by their share of the row.

    Args:
        matrices: title of each model to C lists of C counts.
        class_names: C names in label order.
        out: path without ending; folders are made.
        title: heading.
        subtitle: state the split and n here.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: no matrices, or one that is not C × C.
    """
    size = len(class_names)
    for name, matrix in matrices.items():
        if np.shape(matrix) != (size, size):
            raise ValueError(f"the matrix of {name} has shape {np.shape(matrix)}; expected ({size}, {size})")
    if not matrices:
        raise ValueError("there are no confusion matrices to draw")
    side = max(2.4, 0.62 * size + 0.6)
    with figure_style():
        figure = new_figure(side * len(matrices) + 1.2, side, title, subtitle)
        for number, (axes, (name, matrix)) in enumerate(
            zip(figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0], matrices.items(), strict=True)
        ):
            counts = np.asarray(matrix, dtype=float)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for row in range(size):
                for column in range(size):
                    share = shares[row, column]
                    axes.text(
                        column,
                        row,
                        f"{counts[row, column]:.0f}\n{100 * share:.0f} %",
                        ha="center",
                        va="center",
                        size=8,
                        color="white" if share > 0.55 else "black",
                        weight="bold" if row == column else "normal",
                    )
            axes.set_title(name, weight="bold")
            axes.set_xticks(range(size), class_names, rotation=35, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(size), class_names)
            axes.tick_params(length=0)
            axes.set_xlabel("predicted")
            if number == 0:
                axes.set_ylabel("true")
            for spine in axes.spines.values():
                spine.set_visible(False)
        return save_figure(figure, out)
