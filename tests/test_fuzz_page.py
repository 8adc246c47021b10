"""Damaged files in a real browser: the page reads them as Python does, or says that it cannot."""

from __future__ import annotations

from picture_mutations import STRUCTURES

from tests.conftest import ROOT
from tests.in_browser import IN_BROWSER

pytestmark = IN_BROWSER
COUNT = 150  # of each kind; `benchmarks/fuzz_page.py` does the same at length


def test_damage_is_read_as_python_reads_it_or_refused() -> None:
    from fuzz_page import fuzz, opened, summary

    todo = [(kind, number) for kind in STRUCTURES for number in range(COUNT)]
    with opened(ROOT / "models" / "kdmri-student") as (page, memory):
        outcomes, peaks = fuzz(page, memory, todo, seed=7)
        assert page.wrong == []
    assert [outcome for outcome in outcomes if outcome.finding] == []
    by_kind = {kind: summary(outcomes, kind) for kind in STRUCTURES}
    assert set(peaks) == set(by_kind)
    for kind in ("png", "jpeg", "dicom", "gif", "webp", "bmp", "nifti"):
        assert by_kind[kind]["read"] > 5 and by_kind[kind]["refused"] > 5, kind
    for kind in ("png", "dicom"):  # which the page decodes by itself
        assert by_kind[kind]["both"] > 5 and by_kind[kind]["other_pixels"] == [], kind
    for kind in ("tiff", "npy"):  # which no browser reads
        assert by_kind[kind]["read"] == 0, kind
