"""Two figures of robustness: what the corruptions look like, and what they cost each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from hf_kdmri.evaluation.figures.style import (
    GREY,
    INK,
    MODEL_STYLES,
    SKY,
    VERMILLION,
    figure_style,
    light_grid,
    new_figure,
    save_figure,
)
from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES, check_corruptions, corrupt, corruption_title
from hf_kdmri.wording import counted

_COLUMNS = 5  # of the chart, and pictures in a row of the sheet's block
# How strengths are written; `corruptions.SEVERITIES` tells what they mean.
_STRENGTHS = {
    "rician_noise": "σ {:.0%}",
    "ghosting": "{:.0%}",
    "gibbs_ringing": "{:.0%}",
    "blur": "σ {:.1%}",
    "downsampling": "÷ {:g}",
    "gamma": "γ {:g}",
    "brightness": "± {:.0%}",
    "contrast": "− {:.0%}",
    "rotation": "{:g}°",
    "zoom_in": "× {:g}",
    "zoom_out": "÷ {:g}",
    "shift": "{:.0%}",
}
_OTHERS: tuple[dict[str, Any], ...] = (
    *reversed(MODEL_STYLES.values()),
    {"color": VERMILLION, "marker": "D", "linestyle": ":"},
    {"color": SKY, "marker": "v", "linestyle": "-"},
)


def plot_corruption_sheet(
    view: Tensor,
    out: str | Path,
    *,
    index: int = 0,
    corruptions: Sequence[str] | None = None,
    seed: int = 0,
    subtitle: str = "",
) -> tuple[Path, Path]:
    """Show one picture under each corruption at each severity; above each picture stands the strength.

    Args:
        view: (1 or 3, H, W) uint8. Mind the licence of the data before the sheet goes anywhere.
        out: Path without ending; folders are made.
        index: Position of the picture in its data set, which the random draws follow.
        corruptions: Keys of `corruptions.SEVERITIES`; default all.
        seed: Of the draws.
        subtitle: State which picture this is.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: An unknown corruption, or none.
        ImportError: MONAI is needed and not installed.
    """
    names = list(SEVERITIES if corruptions is None else corruptions)
    check_corruptions(names)
    if not names:
        raise ValueError("there are no corruptions to show; leave them out for all")
    # Those without severities share rows, behind the uncorrupted picture.
    flips = [name for name in names if len(SEVERITIES[name]) == 1]
    graded = [name for name in names if name not in flips]
    blocks = 2 if len(graded) > 1 else 1
    tiles: list[tuple[str, list[tuple[str, Tensor]]]] = [("uncorrupted", [("", view)])]
    for name in flips:
        tiles[0][1].append((corruption_title(name), corrupt(view[None], [index], name, 1, seed=seed)[0]))
    for name in graded:
        levels = range(1, len(SEVERITIES[name]) + 1)
        changed = [corrupt(view[None], [index], name, level, seed=seed)[0] for level in levels]
        strengths = [_STRENGTHS.get(name, "{:g}").format(strength) for strength in SEVERITIES[name]]
        tiles.append((corruption_title(name), list(zip(strengths, changed, strict=True))))
    rows = -(-len(tiles) // blocks)
    with figure_style():
        figure = new_figure(6.3 * blocks, 1.22 * rows, "One slice under every corruption, severities 1 to 5", subtitle)
        layout: Any = figure.get_layout_engine()
        layout.set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.01)
        widths = ([0.95] + [1.0] * _COLUMNS) * blocks
        grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
        for number, (label, pictures) in enumerate(tiles):
            row, first = number % rows, number // rows * (_COLUMNS + 1)
            axes = figure.add_subplot(grid[row, first])
            axes.set_axis_off()
            name = label.replace(" ", "\n")
            axes.text(0.97, 0.5, name, ha="right", va="center", size=10, weight="bold", color=INK)
            for column, (strength, picture) in enumerate(pictures, start=first + 1):
                axes = figure.add_subplot(grid[row, column])
                axes.set_axis_off()
                axes.imshow(picture.permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=255)
                axes.set_title(strength, size=8, color=GREY, loc="center", pad=2)
        return save_figure(figure, out)


def plot_robustness(
    results: Mapping[str, Any], out: str | Path, *, title: str = "Accuracy under corruption", subtitle: str = ""
) -> tuple[Path, Path]:
    """Draw accuracy against severity, one small chart for each corruption, all on the same axes.

    Severity 0 is the uncorrupted picture. Beside a corruption's name stands what each model loses there on average, in
    points, in the order of the legend; the legend has the mean over all corruptions.

    Args:
        results: What `evaluate_robustness` returns.
        out: Path without ending; folders are made.
        title: Heading.
        subtitle: State the split; pictures and patients are added.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        ValueError: More models than can be told apart.
    """
    models, severities = results["models"], results["severities"]
    if len(models) > len(_OTHERS):
        raise ValueError(f"there are {len(models)} models; this figure tells {len(_OTHERS)} apart, so draw fewer")
    styles = _styles(list(models))
    n_patients = results["n_patients"]
    stated = f"n = {counted(results['n'], 'slice')}" + (
        "" if n_patients is None else f" of {counted(n_patients, 'patient')}"
    )
    meaning = f"below each name: points against clean, mean over severities, {' / '.join(models)}"
    ticks = max(len(strengths) for strengths in severities.values())
    values = [value for model in models.values() for row in model["accuracy"].values() for value in row]
    bottom = 20 * (int(100 * min(values)) // 20)
    columns = min(_COLUMNS, len(severities))
    rows = -(-len(severities) // columns)
    with figure_style():
        heading = "; ".join(filter(None, (subtitle, stated, meaning)))
        figure = new_figure(max(5.5, 2.35 * columns), 1.95 * rows + 0.6, title, heading)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(severities) :]:
            axes.set_visible(False)
        for axes, corruption in zip(grid.flat, severities, strict=False):
            _draw_panel(axes, corruption, models, styles)
            axes.set(xlim=(-0.25, ticks + 0.25), xticks=range(ticks + 1), ylim=(bottom, 102))
        for number, axes in enumerate(grid.flat[: len(severities)]):
            if number % columns == 0:
                axes.set_ylabel("accuracy [%]")
            if number + columns >= len(severities):
                axes.set_xlabel("severity")
                axes.tick_params(labelbottom=True)
        handles = [
            Line2D([], [], **styles[name], label=f"{name}: {_signed(-model['mean_drop'])} points on average")
            for name, model in models.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize=10)
        return save_figure(figure, out)


def _draw_panel(axes: Axes, corruption: str, models: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> None:
    shape: dict[str, Any] = {"linewidth": 1.6, "markersize": 4.5, "clip_on": False}
    for name, model in models.items():
        values = [100 * value for value in (model["clean_accuracy"], *model["accuracy"][corruption])]
        axes.plot(range(len(values)), values, **styles[name], **shape, gid=f"{corruption}-{name}")
    axes.set_title(corruption_title(corruption), weight="bold", pad=14)
    lost = " / ".join(_signed(-model["drop"][corruption]) for model in models.values())
    axes.annotate(lost, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", size=8, color=GREY)
    light_grid(axes, "y")


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The project's colours where the three names are used, else one of each in order."""
    roles = {name: _role(name) for name in names}
    if None not in roles.values() and len(set(roles.values())) == len(names):
        return {name: MODEL_STYLES[str(role)] for name, role in roles.items()}
    return dict(zip(names, _OTHERS, strict=False))


def _role(name: str) -> str | None:
    known = {"student alone": "baseline", "distilled student": "student"}
    role = known.get(name.lower(), name.lower())
    return role if role in MODEL_STYLES else None


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "−")
