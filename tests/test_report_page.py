"""The page: everything escaped, nothing loaded from anywhere, figures and tables inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from hf_kdmri.evaluation.figures.confusion import plot_confusion_matrices
from hf_kdmri.evaluation.report import escape_markdown
from hf_kdmri.evaluation.report_page import KeyNumber, Page, Section, code, figure, render_page, table, text

SCRIPT = "<script>alert('x')</script>"


def page(tmp_path: Path) -> str:
    Image.new("RGB", (300, 150)).save(tmp_path / "figure.png")
    markdown = f"| {escape_markdown(SCRIPT)} | b |\n| :-- | --: |\n| {escape_markdown('a|b_c*')} | **1** |\n"
    blocks = [text(SCRIPT), table(markdown), figure(tmp_path / "figure.png", SCRIPT, SCRIPT), code(SCRIPT, SCRIPT)]
    return render_page(
        Page(SCRIPT, SCRIPT, [SCRIPT], [KeyNumber(SCRIPT, SCRIPT)], [Section(SCRIPT, blocks)], footer=[SCRIPT])
    )


def test_no_text_becomes_markup(tmp_path: Path):
    written = page(tmp_path)
    assert "<script" not in written
    assert written.count("&lt;script&gt;") >= 10
    assert '<td class="text">a|b_c*</td><td>1</td>' in written


def test_the_page_loads_nothing(tmp_path: Path):
    written = page(tmp_path)
    assert not re.search(r"""(src|href)=["'](?!data:image/png;base64,|#)""", written)
    assert "@import" not in written and "url(" not in written and "http" not in written


def test_figures_are_embedded_at_their_own_size(tmp_path: Path):
    assert 'width="192"' in page(tmp_path)  # 300 pixels at 150 per inch, 96 of the page's per inch


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="expected a Markdown table"):
        table("nothing")


def test_confusion_matrices_are_drawn_and_checked(tmp_path: Path):
    png, svg = plot_confusion_matrices({"Teacher": [[3, 1], [0, 4]]}, ["a", "b"], tmp_path / "confusion")
    assert Image.open(png).height > 200 and "75 %" in svg.read_text()
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected \(2, 2\)"):
        plot_confusion_matrices({"Teacher": [[3, 1]]}, ["a", "b"], tmp_path / "confusion")
    with pytest.raises(ValueError, match="no confusion matrices"):
        plot_confusion_matrices({}, ["a", "b"], tmp_path / "confusion")
