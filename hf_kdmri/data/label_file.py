"""Read the CSV of true labels that `kdmri evaluate` scores against."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_kdmri.data.label_map import checked_map, class_of, nearest, nearest_name, same_name, unused_names
from hf_kdmri.whole_files import sha256_of

_DELIMITERS = ",;\t"
_MOST_FAULTS = 10  # listed at once


@dataclass(frozen=True)
class LabelledFile:
    """One image with its true class: the file, the index of its label, and the patient where the CSV names one."""

    path: Path
    label: int
    patient: str | None


@dataclass(frozen=True)
class LabelFile:
    """What a CSV says: the files to score, those that are not there, and what a label map skips."""

    rows: list[LabelledFile]
    missing: dict[Path, str]  # path to reason, of files that are listed and not there; none of them is in rows
    skipped: dict[str, int]  # rows that the label map skips, by label as written
    unused: list[str]  # names in the label map that no row has

    @property
    def listed(self) -> int:
        """Rows of the CSV."""
        return len(self.rows) + len(self.missing) + sum(self.skipped.values())


def read_label_file(
    csv_file: Path,
    images: Path,
    class_names: Sequence[str],
    *,
    label_map: Mapping[str, str | None] | None = None,
    file_column: str = "file",
    label_column: str = "label",
    patient_column: str | None = None,
) -> LabelFile:
    r"""Read a CSV with columns for the file, its label and, if there is one, the patient; others are ignored.

    Comma, semicolon or tab, whichever divides the header into most columns; UTF-8 or UTF-16, with or without a byte
    order mark; a first line `sep=;`, as Excel writes it, is understood. Names of columns and classes match in any case.

    Args:
        csv_file: Has a header.
        images: Folder that the file column is relative to; `a\b.png` is read as `a/b.png` where that exists.
        class_names: Names that labels may have, in the order of the model's logits.
        label_map: From `parse_label_map`; asked first, before the class names.
        file_column: Its name.
        label_column: Its name.
        patient_column: Its name; by default `patient`, where there is such a column; "" for no patients.

    Returns:
        The rows in order, and what is not among them.

    Raises:
        ValueError: No text, a column is missing, there are no rows, or the label map names an unknown class or skips
            all rows. Or rows have faults, of which the first ten are in the message, each with its line and the way
            out: too many or too few fields, an unknown class, a file outside `images` or listed twice, a patient that
            is empty or has two labels.
    """
    mapping = checked_map(label_map or {}, class_names)
    header, lines = _read_lines(csv_file)
    columns = [name.strip().casefold() for name in header]
    wanted = {"--file-column": file_column, "--label-column": label_column}
    if patient_column:
        wanted["--patient-column"] = patient_column
    _check_columns(csv_file, header, columns, wanted)
    file_at, label_at = columns.index(file_column.casefold()), columns.index(label_column.casefold())
    patient_name = ("patient" if patient_column is None else patient_column).casefold()
    patient_at = columns.index(patient_name) if patient_name in columns else None

    faults = _Faults()
    whole = [(line, row) for line, row in lines if faults.check_width(line, row, header)]
    faults.check_labels([(line, row[label_at].strip()) for line, row in whole], mapping, class_names)
    rows, missing, skipped, seen = [], dict[Path, str](), Counter[str](), dict[Path, int]()
    first_of: dict[str, tuple[int, str]] = {}
    for line, row in whole:
        name, label = row[file_at].strip(), row[label_at].strip()
        target = class_of(label, mapping, class_names)
        if target is None:
            skipped[label] += 1
            continue
        path = _path_of(name, images)
        if path is None:
            outside = f"{name!r} lies outside --images {images}; give the folder that holds all files as --images"
            faults.add(line, outside if name else "the file's name is empty; fill it in, or delete the row")
            continue
        if (first := seen.setdefault(path.resolve(), line)) != line:
            faults.add(line, f"{name!r} is listed twice (first in line {first}), and would count twice")
        patient = None if patient_at is None else row[patient_at].strip()
        if patient == "":
            faults.add(line, "the patient is empty; fill it in, or score without patients: --patient-column ''")
        elif patient is not None:
            at, other = first_of.setdefault(patient, (line, target))
            if other != target:
                faults.add(
                    line,
                    f"patient {patient!r} has two labels, {other} (line {at}) and {target}; if that is so, score "
                    "without patients: --patient-column ''",
                )
        if path.is_file():
            rows.append(LabelledFile(path, class_names.index(target), patient))
        else:
            missing[path] = f"is missing{_nearest_file(path, images)}"
    faults.stop(csv_file)
    if not rows and not missing:
        raise ValueError(f"{csv_file}: the label map skips all {len(lines)} rows, so there is nothing to score")
    return LabelFile(rows, missing, dict(skipped), unused_names(mapping, [row[label_at] for _, row in lines]))


class _Faults:
    """What is wrong with rows, gathered so that one reading mends them all."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def add(self, line: int, fault: str) -> None:
        self.told.append((line, fault))

    def check_width(self, line: int, row: Sequence[str], header: Sequence[str]) -> bool:
        if len(row) == len(header):
            return True
        self.add(
            line,
            f"{len(row)} fields, and the header has {len(header)}; put quotes around a name that holds the delimiter",
        )
        return False

    def check_labels(
        self, labels: list[tuple[int, str]], mapping: Mapping[str, str | None], class_names: Sequence[str]
    ) -> None:
        """Labels that are neither mapped nor a class, each once."""
        lines: dict[str, list[int]] = defaultdict(list)
        for line, label in labels:
            if label.casefold() not in mapping and same_name(label, class_names) is None:
                lines[label].append(line)
        for label, at in lines.items():
            if not label:
                for line in at:
                    self.add(line, "the label is empty; fill it in, or delete the row")
                continue
            meant = nearest_name(label, class_names) or class_names[0]
            count = f" ({len(at)} rows)" if len(at) > 1 else ""
            self.add(
                at[0],
                f"unknown label {label!r}{count}; the model knows {', '.join(class_names)}, by name"
                f"{nearest(label, class_names)}. Say what it means, for instance --label-map '{label}={meant}', or "
                f"skip its rows: --label-map '{label}='",
            )

    def stop(self, csv_file: Path) -> None:
        """Raise all of them, if there are any."""
        if not self.told:
            return
        told = [f"line {line}: {fault}" for line, fault in sorted(self.told, key=lambda told: told[0])]
        if len(told) == 1:
            raise ValueError(f"{csv_file}, {told[0]}")
        rest = [f"and {len(told) - _MOST_FAULTS} more"] if len(told) > _MOST_FAULTS else []
        listed = "\n".join(f"  {line}" for line in told[:_MOST_FAULTS] + rest)
        raise ValueError(f"{csv_file} has {len(told)} faults:\n{listed}")


def same_content(paths: Sequence[Path]) -> list[list[Path]]:
    """Find files that are equal byte for byte: copies under several names, which a score counts several times.

    Args:
        paths: Files that exist.

    Returns:
        Groups of two and more, in order of the first file of each; only files of equal size are read.
    """
    by_size, by_content = defaultdict(list), defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    for alike in by_size.values():
        for path in alike if len(alike) > 1 else ():
            by_content[sha256_of(path)].append(path)
    return [group for group in by_content.values() if len(group) > 1]


def _read_lines(csv_file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and (line number, fields) of every row that is not empty."""
    raw = csv_file.read_bytes()
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{csv_file} is no UTF-8 text ({error}); save it as CSV UTF-8") from error
    lead = 0
    first, _, rest = text.partition("\n")
    if (declared := first.strip().lower()).startswith("sep=") and len(declared) == 5:
        text, lead = rest, 1
        delimiter = declared[-1]
    else:
        delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num + lead, fields) for fields in reader if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise ValueError(f"{csv_file} is no CSV file: {error}") from error
    if not lines:
        raise ValueError(f"{csv_file} is empty; expected a header, for instance file,label, and a row for each image")
    (_, header), *rows = lines
    if not rows:
        raise ValueError(f"{csv_file} has a header but no rows")
    return header, rows


def _check_columns(csv_file: Path, header: list[str], columns: list[str], wanted: Mapping[str, str]) -> None:
    missing = {option: name for option, name in wanted.items() if name.casefold() not in columns}
    if missing:
        option = next(iter(missing))
        raise ValueError(
            f"{csv_file} lacks the column {' and '.join(missing.values())}; it has {', '.join(header)}. Rename it, or "
            f"name yours: {option} NAME"
        )
    for name in [*wanted.values(), "patient"]:
        if columns.count(name.casefold()) > 1:
            raise ValueError(f"{csv_file} has the column {name} {columns.count(name.casefold())} times; keep one")


def _path_of(name: str, images: Path) -> Path | None:
    """The file's path below the folder, there or not; None if it is not below, or if there is no name."""
    path = images / name
    if "\\" in name and not path.is_file():
        path = images / name.replace("\\", "/")
    top = os.path.abspath(images)
    within = os.path.relpath(os.path.abspath(path), top)  # by name: a link in the folder may lead anywhere
    return None if not name or within.split(os.sep)[0] == os.pardir else images / within


def _nearest_file(path: Path, images: Path) -> str:
    folder = path.parent if path.parent.is_dir() else images
    return nearest(path.name, (entry.name for entry in folder.iterdir() if entry.is_file()))
