"""Read the CSV of true labels that `kdmri evaluate` scores against."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabelledFile:
    """One image with its true class: the file, the index of its label, and the patient where the CSV names one."""

    path: Path
    label: int
    patient: str | None


def read_label_file(csv_file: Path, images: Path, class_names: Sequence[str]) -> list[LabelledFile]:
    """Read a CSV with the columns `file`, `label` and optionally `patient`; others are ignored.

    Args:
        csv_file: Encoded in UTF-8, with a header.
        images: Folder that `file` is relative to.
        class_names: Names that `label` may have, in the order of the model's logits.

    Returns:
        The rows in order.

    Raises:
        ValueError: No UTF-8 text, a column is missing, there are no rows, or a row names an unknown class, a file that
            is missing, outside `images` or listed twice, or lacks the patient that others have.
    """
    try:
        with csv_file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            if missing := [column for column in ("file", "label") if column not in columns]:
                raise ValueError(
                    f"{csv_file} lacks the column {' and '.join(missing)}; it has {', '.join(columns) or 'none'}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{csv_file} is no UTF-8 text ({error}); save it as CSV UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{csv_file} is no CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{csv_file} has a header but no rows")
    index = {name: number for number, name in enumerate(class_names)}
    root, seen, labelled = images.resolve(), set(), []
    for line, row in rows:
        where, name, label = f"{csv_file}, line {line}", row["file"] or "", (row["label"] or "").strip()
        path = images / name
        if label not in index:
            raise ValueError(f"{where}: unknown label {label!r}; the model knows {', '.join(class_names)}, by name")
        if not path.resolve().is_relative_to(root) or not path.is_file():
            raise ValueError(f"{where}: there is no file {name!r} in {images}; paths are relative to --images")
        if path in seen:
            raise ValueError(f"{where}: {name!r} is listed twice, and would count twice")
        patient = (row.get("patient") or "").strip() if "patient" in columns else None
        if patient == "":
            raise ValueError(f"{where}: the patient is empty; fill it in every row or drop the column")
        seen.add(path)
        labelled.append(LabelledFile(path, index[label], patient))
    return labelled
