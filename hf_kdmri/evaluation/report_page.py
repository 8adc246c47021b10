"""One self-contained HTML page: key numbers, sections of text, tables and figures. Everything in it is escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jinja2
from PIL import Image

_CSS_DPI, _FIGURE_DPI = 96, 150  # shown at its own size, a figure's letters are as large as the page's


@dataclass(frozen=True)
class Block:
    """A piece of a section; use the functions below to make one."""

    kind: Literal["text", "table", "figure", "code"]
    text: str = ""
    quiet: bool = False
    open: bool = False
    heading: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text_columns: Sequence[bool] = ()
    uri: str = ""
    width: int = 0
    alt: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        """Where links within the page lead."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class KeyNumber:
    """A number that stands large at the top."""

    name: str
    value: str
    interval: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        title: heading, and the title of the window.
        lead: one or two sentences: what was trained and tested on what.
        warnings: what a reader must know before any number.
        keys: the numbers at the top.
        sections: in their order.
        footer: licences, credits, how it was made.
    """

    title: str
    lead: str
    warnings: Sequence[str] = ()
    keys: Sequence[KeyNumber] = ()
    sections: Sequence[Section] = ()
    footer: Sequence[str] = field(default_factory=list)


def text(words: str, *, quiet: bool = False) -> Block:
    """A paragraph."""
    return Block("text", text=words, quiet=quiet)


def code(words: str, caption: str, *, open: bool = False) -> Block:
    """Lines as they are, folded away below a caption."""
    return Block("code", text=words, caption=caption, open=open)


def table(markdown: str) -> Block:
    """A Markdown table, as the functions for model cards write them.

    Raises:
        ValueError: no table.

    Example:
        >>> block = table("| a | b |\\n| :-- | --: |\\n| x\\\\|y | **1** |\\n")
        >>> block.heading, block.rows, block.text_columns
        (['a', 'b'], [['x|y', '1']], [True, False])
    """
    lines = [line for line in markdown.strip().splitlines() if line.startswith("|")]
    if len(lines) < 2:
        raise ValueError(f"expected a Markdown table with a heading and a line of marks, got {markdown[:80]!r}")
    heading, marks, *rows = (_cells(line) for line in lines)
    return Block("table", heading=heading, rows=rows, text_columns=[not mark.strip().endswith(":") for mark in marks])


def figure(png: Path, alt: str, caption: str = "") -> Block:
    """A picture, embedded.

    Args:
        png: a PNG file.
        alt: what it shows, for those who do not see it.
        caption: stands below it.
    """
    encoded = base64.b64encode(Path(png).read_bytes()).decode()
    with Image.open(png) as image:
        width = round(image.width * _CSS_DPI / _FIGURE_DPI)
    return Block("figure", uri=f"data:image/png;base64,{encoded}", width=width, alt=alt, caption=caption)


def render_page(page: Page) -> str:
    """Write the page as HTML that loads nothing from anywhere."""
    source = Path(__file__).with_name("report_page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(source).render(page=page)


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    # What `escape_markdown` made safe for Markdown becomes the plain text again, which the template escapes for HTML.
    return [html.unescape(re.sub(r"\\(.)", r"\1", cell.strip().replace("**", ""))) for cell in cells]
