"""What all figures share: colours that colour-blind readers tell apart, headings, and saving as PNG and SVG.

Figures are made without pyplot, so they need no display and leave no global state. Text in the SVG stays text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito, "Color Universal Design", 2008
BLUE, SKY, GREEN, ORANGE, VERMILLION = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"
INK, GREY, PALE = "#1A1A1A", "#595959", "#D9D9D9"
# Colour, marker and dashes: each alone tells the models apart, also in print without colour.
MODEL_STYLES: dict[str, dict[str, Any]] = {
    "teacher": {"color": GREEN, "marker": "s", "linestyle": "--"},
    "baseline": {"color": ORANGE, "marker": "^", "linestyle": "-."},
    "student": {"color": BLUE, "marker": "o", "linestyle": "-"},
}

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label with dollar signs is a label, not mathematics
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_kdmri",
}
_HEADING_INCHES = 0.62


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style inside a `with` block; creating and saving must both be inside it."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Make a figure with a bold title and a grey, wrapped subtitle left-aligned above the axes; sizes in inches."""
    lines = textwrap.wrap(subtitle, int(13 * width)) or [""]
    heading = _HEADING_INCHES + 0.17 * (len(lines) - 1)
    height += heading
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - heading / height)))
    FigureCanvasAgg(figure)
    figure.text(0.1 / width, 1 - 0.09 / height, title, size=12, weight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.34 / height, "\n".join(lines), size=9, color=GREY, va="top")
    return figure


def save_figure(figure: Figure, out: str | Path) -> tuple[Path, Path]:
    """Write `out`.png (150 dpi) and `out`.svg; a .png or .svg at the end of `out` is dropped, folders are made.

    Returns:
        The paths of the PNG and of the SVG.
    """
    stem = Path(out)
    if stem.suffix.lower() in (".png", ".svg"):
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg"))
    figure.savefig(png, dpi=150)
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


def light_grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draw pale grid lines behind the data along one axis."""
    axes.grid(axis=axis)
    axes.set_axisbelow(True)
