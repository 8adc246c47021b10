"""The table at the end of a run, for the terminal and for Markdown.

A row is one model: a dict with `model`, `architecture`, `accuracy`, `macro_f1` and, where measured, `n` (slices),
`patient_accuracy`, `parameters`, `ms_per_image` and `unit`, what one image is called ("slices" by default). Fractions
are 0..1. A value that is absent or None shows as "–"; where no row has a patient accuracy, its column is left out.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

REQUIRED = ("model", "architecture", "accuracy", "macro_f1")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _parameters(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("Model", "model", str),
    ("Architecture", "architecture", str),
    ("Accuracy", "accuracy", _percent),
    ("Macro F1", "macro_f1", _percent),
    ("Patient accuracy", "patient_accuracy", _percent),
    ("Parameters", "parameters", _parameters),
    ("ms / image", "ms_per_image", _milliseconds),
    ("n", "n", "{:,}".format),
)


def escape_markdown(text: object) -> str:
    r"""Make a string from outside show as itself in Markdown: no HTML, no markup, no broken table, one line.

    Example:
        >>> print(escape_markdown("<script>|_x_|"))
        &lt;script&gt;\|\_x\_\|
    """
    one_line = " ".join(str(text).split())
    # an underscore inside a word (timm's names) is not markup
    special = r"([\\`*\[\]|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"
    return re.sub(special, r"\\\1", html.escape(one_line, quote=False))


def markdown_table(heading: Sequence[str], lines: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Write cells as a Markdown table, escaped; all but the first columns are aligned to the right."""
    marks = [":--" if column < text_columns else "--:" for column in range(len(heading))]
    rows = [[escape_markdown(cell) for cell in heading], marks]
    rows += [[escape_markdown(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def format_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Format rows for any table: the headings and, for each row, the cells as plain text.

    Raises:
        ValueError: No rows, or a row that lacks one of `REQUIRED`.
    """
    if not rows:
        raise ValueError("there are no results to show: expected at least one row")
    for number, row in enumerate(rows):
        if missing := [key for key in REQUIRED if row.get(key) is None]:
            raise ValueError(f"row {number} of the results ({row.get('model', 'no name')}) lacks {', '.join(missing)}")
    unit = rows[0].get("unit", "slices")
    columns = [
        (f"n ({unit})" if key == "n" else heading, key, show)
        for heading, key, show in _COLUMNS
        if key != "patient_accuracy" or any(row.get(key) is not None for row in rows)
    ]
    cells = [["–" if row.get(key) is None else show(row[key]) for _, key, show in columns] for row in rows]
    return [heading for heading, _, _ in columns], cells


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the results as a Markdown table; names are escaped.

    Args:
        rows: One dict for each model, see the head of this file.

    Returns:
        The table, with a newline at its end.

    Raises:
        ValueError: No rows, or a row that lacks a required key.
    """
    return markdown_table(*format_rows(rows), text_columns=2)


def print_results(rows: Sequence[Mapping[str, Any]], *, title: str = "Results", console: Console | None = None) -> None:
    """Print the results as a table on the terminal, as `results_table` would write them.

    Args:
        rows: One dict for each model, see the head of this file.
        title: Stands above the table: name the split here.
        console: Where to print; standard output by default.
    """
    headings, cells = format_rows(rows)
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in enumerate(headings):
        number = column >= 2  # numbers keep their line, names fold on a narrow terminal
        table.add_column(
            heading.replace(" ", "\n", 1) if number else heading,
            justify="right" if number else "left",
            vertical="top",
            no_wrap=number,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text, so that a name with [brackets] is no markup
    if console is None:
        # Into a file or a pipe rich would assume 80 columns and fold the names.
        console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
