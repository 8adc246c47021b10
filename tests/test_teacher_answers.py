"""What `experiments/teacher_answers.py` counts, on answers whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conftest import ROOT


def test_confidence_and_entropy_of_known_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from teacher_answers import figures

    undecided, sure = np.full((2, 3), 1 / 3), np.array([[1 / 17, 16 / 17, 0.0]])
    assert figures(undecided, np.array([0, 1]), 4.0) == pytest.approx(
        {"accuracy": 0.5, "confidence": 1 / 3, "entropy": math.log2(3)}
    )
    # Odds of 16 to 1 as they are, of 2 to 1 at the temperature 4.
    told = figures(sure, np.array([1]), 4.0)
    assert told == pytest.approx({"accuracy": 1.0, "confidence": 16 / 17, "entropy": math.log2(3) - 2 / 3})
