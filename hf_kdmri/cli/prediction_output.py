"""Print predictions one at a time as CSV, JSON or a plain table, without keeping them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray


class PredictionWriter:
    """Writes one row for each file to a stream; use it as a context manager, which closes a JSON array.

    Args:
        form: `csv` (columns file, label, score and one for each class), `json` (one array of objects with file,
            label, score, scores and, where there is one, warning) or `table` (aligned text).
        labels: Class names in the order of the probabilities.
        stream: Where to write.
    """

    def __init__(self, form: str, labels: Sequence[str], stream: TextIO) -> None:
        rows: dict[str, Callable[[Path, int, NDArray[np.float32], str | None], None]] = {
            "csv": self._csv_row,
            "json": self._json_row,
            "table": self._table_row,
        }
        self.labels, self.stream, self.form, self.count = list(labels), stream, form, 0
        self.write_row = rows[form]
        self.width = max(map(len, [*self.labels, "label"]))

    def __enter__(self) -> PredictionWriter:
        """Write the head."""
        if self.form == "csv":
            csv.writer(self.stream).writerow(["file", "label", "score", *self.labels])
        elif self.form == "json":
            self.stream.write("[")
        return self

    def __exit__(self, *_: object) -> None:
        """Write the foot, also after an error, so that what was printed can be parsed."""
        if self.form == "json":
            self.stream.write("\n]\n")
        self.stream.flush()

    def write(self, path: Path, probabilities: NDArray[np.float32], warning: str | None = None) -> None:
        """Write one file's row; `probabilities` is (C,), and the warning stands in JSON only."""
        self.write_row(path, int(probabilities.argmax()), probabilities, warning)
        self.count += 1

    def _csv_row(self, path: Path, best: int, probabilities: NDArray[np.float32], warning: str | None) -> None:
        scores = [f"{p:.6f}" for p in probabilities]
        csv.writer(self.stream).writerow([path, self.labels[best], scores[best], *scores])

    def _json_row(self, path: Path, best: int, probabilities: NDArray[np.float32], warning: str | None) -> None:
        scores = {label: round(float(p), 6) for label, p in zip(self.labels, probabilities, strict=True)}
        row = {"file": str(path), "label": self.labels[best], "score": scores[self.labels[best]], "scores": scores}
        if warning:
            row["warning"] = warning
        self.stream.write((",\n" if self.count else "\n") + json.dumps(row))

    def _table_row(self, path: Path, best: int, probabilities: NDArray[np.float32], warning: str | None) -> None:
        if not self.count:
            self.stream.write(f"{'label':{self.width}}  score  file\n")
        self.stream.write(f"{self.labels[best]:{self.width}}  {probabilities[best]:5.3f}  {path}\n")
