"""Read the CSV of true labels that `kdmri evaluate` scores against."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_kdmri.whole_files import sha256_of

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class LabelledFile:
    """One image with its true class: the file, the index of its label, and the patient where the CSV names one."""

    path: Path
    label: int
    patient: str | None


@dataclass(frozen=True)
class LabelFile:
    """What a CSV says: the files to score, and how many rows a label map skips, by label as written."""

    rows: list[LabelledFile]
    skipped: dict[str, int]
    unused: list[str]  # names in the label map that no row has


def parse_label_map(entries: Iterable[str]) -> dict[str, str | None]:
    """Read `NAME=CLASS` (take NAME for CLASS) and `NAME=` (skip rows of NAME).

    Args:
        entries: One for each name.

    Returns:
        Name, in lower case, to class, or to None where its rows are skipped.

    Raises:
        ValueError: No equals sign, no name, or a name given twice with different meanings.

    Example:
        >>> parse_label_map(["Meningioma_Tumor=meningioma", "notumor="])
        {'meningioma_tumor': 'meningioma', 'notumor': None}
    """
    mapping: dict[str, str | None] = {}
    for entry in entries:
        name, equals, target = (part.strip() for part in entry.rpartition("="))
        if not equals or not name:
            raise ValueError(f"label map {entry!r} is not NAME=CLASS, nor NAME= to skip rows of that label")
        key = name.casefold()
        if mapping.get(key, target or None) != (target or None):
            raise ValueError(
                f"the label map gives {name!r} two meanings: {mapping[key] or 'skip'} and {target or 'skip'}"
            )
        mapping[key] = target or None
    return mapping


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
        patient_column: Its name; by default `patient`, where there is such a column.

    Returns:
        The rows in order, and what was skipped.

    Raises:
        ValueError: No text, a column is missing, there are no rows, a row has too many or too few fields, names an
            unknown class or a file that is missing, outside `images` or listed twice, or lacks the patient that others
            have; or the label map names an unknown class. The message has the line and the nearest name there is.
    """
    mapping = _checked_map(label_map or {}, class_names)
    header, lines = _read_lines(csv_file)
    columns = [name.strip().casefold() for name in header]
    wanted = {"--file-column": file_column, "--label-column": label_column}
    if patient_column is not None:
        wanted["--patient-column"] = patient_column
    _check_columns(csv_file, header, columns, wanted)
    file_at, label_at = columns.index(file_column.casefold()), columns.index(label_column.casefold())
    patient_name = (patient_column or "patient").casefold()
    patient_at = columns.index(patient_name) if patient_name in columns else None
    _check_labels(csv_file, [(line, row[label_at].strip()) for line, row in lines], mapping, class_names)

    rows, skipped, seen = [], Counter[str](), dict[Path, int]()
    for line, row in lines:
        where, name, label = f"{csv_file}, line {line}", row[file_at].strip(), row[label_at].strip()
        target = _class_of(label, mapping, class_names)
        if target is None:
            skipped[label] += 1
            continue
        path = _find_file(where, name, images)
        if (first := seen.setdefault(path.resolve(), line)) != line:
            raise ValueError(f"{where}: {name!r} is listed twice (first in line {first}), and would count twice")
        patient = None if patient_at is None else row[patient_at].strip()
        if patient == "":
            raise ValueError(f"{where}: the patient is empty; fill it in every row or drop the column")
        rows.append(LabelledFile(path, class_names.index(target), patient))
    if not rows:
        raise ValueError(f"{csv_file}: the label map skips all {len(lines)} rows, so there is nothing to score")
    return LabelFile(rows, dict(skipped), _unused(mapping, [row[label_at] for _, row in lines]))


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
    for line, fields in rows:
        if len(fields) != len(header):
            raise ValueError(
                f"{csv_file}, line {line} has {len(fields)} fields and the header {len(header)}; put quotes around a "
                f"name that holds {delimiter!r}"
            )
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


def _checked_map(mapping: Mapping[str, str | None], class_names: Sequence[str]) -> dict[str, str | None]:
    """The map with its classes as the model writes them."""
    for name, target in mapping.items():
        if target is not None and _same_name(target, class_names) is None:
            raise ValueError(
                f"the label map turns {name!r} into {target!r}, which the model does not know"
                f"{_nearest(target, class_names)}; it knows {', '.join(class_names)}. Repeat --label-map for each name"
            )
    return {n.casefold(): None if target is None else _same_name(target, class_names) for n, target in mapping.items()}


def _check_labels(
    csv_file: Path, labels: list[tuple[int, str]], mapping: Mapping[str, str | None], class_names: Sequence[str]
) -> None:
    """Refuse labels that are neither mapped nor a class: all of them at once, so that one map mends them."""
    lines: dict[str, list[int]] = defaultdict(list)
    for line, label in labels:
        if label.casefold() not in mapping and _same_name(label, class_names) is None:
            lines[label].append(line)
    if not lines:
        return
    (label, (first, *_)), *others = lines.items()
    if not label:
        raise ValueError(f"{csv_file}, line {first}: the label is empty; fill it in, or delete the row")
    meant = _nearest_name(label, class_names) or class_names[0]
    more = ", ".join(f"{name!r} ({len(at)} rows)" for name, at in others[:8]) + (", …" if len(others) > 8 else "")
    raise ValueError(
        f"{csv_file}, line {first}: unknown label {label!r}; the model knows {', '.join(class_names)}, by name"
        f"{_nearest(label, class_names)}. Say what it means, for instance --label-map '{label}={meant}', or skip "
        f"its rows ({len(lines[label])}): --label-map '{label}='" + (f". Unknown as well: {more}" if others else "")
    )


def _class_of(label: str, mapping: Mapping[str, str | None], class_names: Sequence[str]) -> str | None:
    """The model's class of a label, or None where the map skips it; `_check_labels` has refused all others."""
    key = label.casefold()
    return mapping[key] if key in mapping else _same_name(label, class_names)


def _same_name(label: str, class_names: Sequence[str]) -> str | None:
    """The class of that very name, or the one class that has it in another case."""
    if label in class_names:
        return label
    alike = [name for name in class_names if name.casefold() == label.casefold()]
    return alike[0] if len(alike) == 1 else None


def _nearest_name(name: str, candidates: Iterable[str]) -> str | None:
    names = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    return names[near[0]] if near else None


def _nearest(name: str, candidates: Iterable[str]) -> str:
    near = _nearest_name(name, candidates)
    return "" if near is None else f" (the nearest is {near})"


def _unused(mapping: Mapping[str, str | None], labels: Iterable[str]) -> list[str]:
    present = {label.strip().casefold() for label in labels}
    return [name for name in mapping if name not in present]


def _find_file(where: str, name: str, images: Path) -> Path:
    path = images / name
    if "\\" in name and not path.is_file():
        path = images / name.replace("\\", "/")
    if name and path.resolve().is_relative_to(images.resolve()) and path.is_file():
        return path
    folder = path.parent if path.parent.is_dir() and path.resolve().is_relative_to(images.resolve()) else images
    near = _nearest(path.name, (entry.name for entry in folder.iterdir() if entry.is_file()))
    raise ValueError(f"{where}: there is no file {name!r} in {images}{near}; paths are relative to --images")
