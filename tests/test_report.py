from __future__ import annotations

import io

import pytest
from rich.console import Console

from hf_kdmri.evaluation import escape_markdown, print_results, results_table

ROWS = [
    {
        "model": "Teacher",
        "architecture": "tf_efficientnet_lite2",
        "accuracy": 0.9431,
        "macro_f1": 0.9362,
        "patient_accuracy": 0.95,
        "parameters": 4_870_000,
        "ms_per_image": 38.24,
        "n": 1612,
    },
    {
        "model": "Distilled student",
        "architecture": "test_vit",
        "accuracy": 0.9,
        "macro_f1": 0.885,
        "parameters": 98_304,
    },
]


def test_markdown_holds_every_number_with_its_unit() -> None:
    head, rule, teacher, student = results_table(ROWS).splitlines()
    assert "| Accuracy | Macro F1 | Patient accuracy | Parameters | ms / image | n (slices) |" in head
    assert rule.count("|") == head.count("|")
    assert teacher == "| Teacher | tf_efficientnet_lite2 | 94.3 % | 93.6 % | 95.0 % | 4.87 M | 38.2 | 1,612 |"
    assert student == "| Distilled student | test_vit | 90.0 % | 88.5 % | – | 98,304 | – | – |"


def test_names_cannot_break_the_table() -> None:
    table = results_table([{**ROWS[0], "model": "a|b\n<img src=x>", "architecture": "`rm`"}])
    assert len(table.splitlines()) == 3
    assert "a\\|b &lt;img src=x&gt;" in table
    assert "<" not in table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("_em_ **b** [l](u)", r"\_em\_ \*\*b\*\* \[l\](u)"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("# head\n\n- x", r"\# head - x"),
        (3, "3"),
    ],
)
def test_escape(text, escaped) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_the_same(width) -> None:
    stream = io.StringIO()
    rows = [*ROWS, {**ROWS[0], "model": "[red]x[/red]", "n": 1}]
    print_results(rows, title="Test split [fold 0]", console=Console(file=stream, width=width))
    shown = stream.getvalue()
    for expected in ("Test split [fold 0]", "94.3 %", "88.5 %", "4.87 M", "38.2", "1,612", "[red]x"):
        assert expected in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("show", [results_table, print_results])
def test_missing_results_are_refused_by_name(show) -> None:
    with pytest.raises(ValueError, match="no results"):
        show([])
    with pytest.raises(ValueError, match=r"row 0 of the results \(Teacher\) lacks macro_f1"):
        show([{"model": "Teacher", "architecture": "x", "accuracy": 0.5}])
