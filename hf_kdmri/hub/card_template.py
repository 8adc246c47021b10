"""How all cards are rendered: everything is escaped but what is Markdown already."""

from __future__ import annotations

import re
from importlib.resources import files

import jinja2

from hf_kdmri.evaluation.report import escape_markdown


class Markdown(str):
    """Text that is Markdown already; everything else is escaped when the template prints it."""


def render_card(template: str, facts: dict[str, object]) -> str:
    """Render a template of `model_cards/`.

    Args:
        template: Name of the file.
        facts: What the template prints; `Markdown` as it is, all else escaped.

    Returns:
        The page below the metadata, without blank lines at its ends or two of them in a row.

    Raises:
        ValueError: the template prints a fact that is None.
        jinja2.UndefinedError: it names a fact that is not given.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, finalize=_escape, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = files("model_cards").joinpath(template).read_text(encoding="utf-8")
    return re.sub(r"\n{3,}", "\n\n", environment.from_string(text).render(facts)).strip()


def _escape(value: object) -> object:
    if value is None:
        raise ValueError("the model card's template was given None where it prints a fact")
    return value if isinstance(value, Markdown) else escape_markdown(value)
