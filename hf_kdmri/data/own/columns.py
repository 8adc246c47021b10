"""From the columns of any image classification set to `image`, class names and groups."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

_STRINGS = ("string", "large_string", "string_view")


class OwnDataError(ValueError):
    """A data set, or a column of it, that cannot be used; the message says what can."""


def check_columns(columns: Sequence[str], features: datasets.Features, wanted: Mapping[str, str]) -> None:
    """Refuse names that no column has.

    Args:
        columns: Columns of the set.
        features: Their types.
        wanted: Option to column, for instance `{"image_column": "image"}`.

    Raises:
        OwnDataError: A column is missing (the nearest, or the only one of the right type, is named), or two options
            name the same one.
    """
    for option, name in wanted.items():
        if name in columns:
            continue
        alike = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
        if option != "group_column":
            fits = datasets.Image if option == "image_column" else datasets.ClassLabel
            alike = [column for column in columns if isinstance(features[column], fits)][:1] or alike
        hint = f"; did you mean --{option} {alike[0]}?" if alike else f"; give one of them as --{option}"
        if option == "label_column" and not any(
            isinstance(feature, datasets.ClassLabel) for feature in features.values()
        ):
            hint += (
                " (pictures in one class folder only get no labels: two classes are needed; class folders beside a "
                "metadata.csv lose theirs: add a column label to that file)"
            )
        if option == "group_column":
            hint += " (docs/own_data.md tells how to add one to class folders: metadata.csv)"
        raise OwnDataError(f"{option} is {name!r}, but the data set has the columns {', '.join(columns)}{hint}")
    if twice := [name for name, count in Counter(wanted.values()).items() if count > 1]:
        options = [option for option, name in wanted.items() if name == twice[0]]
        raise OwnDataError(f"{' and '.join(options)} both name the column {twice[0]!r}; each needs one of its own")


def as_image_column(dataset: datasets.Dataset, column: str, folder: Path | None) -> datasets.Dataset:
    """Give a column the type `Image`, where it can be read as one.

    Args:
        dataset: One split.
        column: Holds `Image`s, encoded files (bytes, or a struct of bytes and path) or paths of files, relative to
            the working directory or to `folder`.
        folder: The data set's own folder, or None for one from the Hub.

    Returns:
        The split with an `Image` column that is not decoded on reading.

    Raises:
        OwnDataError: Another type, or paths that lead nowhere.
    """
    feature = dataset.features[column]
    if isinstance(feature, datasets.Value) and feature.dtype in _STRINGS and len(dataset):
        path = dataset[0][column]
        roots = [Path(), *([] if folder is None else [folder])]
        root = next((root for root in roots if path and (root / path).is_file()), None)
        if root is None:
            raise OwnDataError(
                f"the image column {column!r} holds text, and its first value {path!r} is no file; give paths relative "
                "to the data folder, or store the pictures: dataset.cast_column(name, datasets.Image())"
            )
        if root != Path():
            dataset = dataset.map(_join, fn_kwargs={"column": column, "root": str(root)}, batched=True)
    elif not isinstance(feature, datasets.Image) and not _is_encoded(feature):
        raise OwnDataError(
            f"the image column {column!r} holds {_type_name(feature)}; expected datasets.Image, encoded files or "
            "paths: store the set with dataset.cast_column(name, datasets.Image())"
        )
    return dataset.cast_column(column, datasets.Image(decode=False))


def read_classes(splits: Mapping[str, datasets.Dataset], column: str) -> tuple[list[str], dict[str, list[str | None]]]:
    """Read the class of every row by name.

    The order of the classes is that of a `ClassLabel`; strings are sorted as text, whole numbers by value. A negative
    number, an empty text and a missing value are "not labelled", as on many test splits of the Hub.

    Args:
        splits: All with the column.
        column: `ClassLabel`, text, whole numbers or truth values.

    Returns:
        The names, and for each split a name or None per row.

    Raises:
        OwnDataError: Another type, or splits that disagree on the type.
    """
    features = [split.features[column] for split in splits.values()]
    feature = features[0]
    if any(other != feature for other in features):
        raise OwnDataError(
            f"the label column {column!r} has other classes in other splits; "
            "cast it to one ClassLabel, dataset.cast_column(name, ClassLabel(names=[...])), and save the set again"
        )
    values = {name: split[column][:] for name, split in splits.items()}
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        return names, {
            split: [None if value is None or value < 0 else names[value] for value in rows]
            for split, rows in values.items()
        }
    whole = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))
    if not whole and not (isinstance(feature, datasets.Value) and feature.dtype in (*_STRINGS, "bool")):
        raise OwnDataError(
            f"the label column {column!r} holds {_type_name(feature)}; expected one class per image as ClassLabel, "
            "text or whole numbers"
        )
    classes = {
        split: [
            None if value is None or (value < 0 if whole else not str(value).strip()) else str(value) for value in rows
        ]
        for split, rows in values.items()
    }
    found = {value for rows in classes.values() for value in rows if value is not None}
    return sorted(found, key=int) if whole else sorted(found), classes


def read_groups(dataset: datasets.Dataset, column: str, split: str) -> list[str]:
    """Read the group (patient, animal, scan) of every row as text.

    Raises:
        OwnDataError: Groups are missing, or are no text or whole numbers.
    """
    feature = dataset.features[column]
    plain = isinstance(feature, datasets.Value) and feature.dtype.startswith((*_STRINGS, "int", "uint"))
    if not plain and not isinstance(feature, datasets.ClassLabel):
        raise OwnDataError(f"the group column {column!r} holds {_type_name(feature)}; expected text or whole numbers")
    values = dataset[column][:]
    missing = [row for row, value in enumerate(values) if value is None or not str(value).strip()]
    if missing:
        raise OwnDataError(
            f"the group column {column!r} is empty in {len(missing)} of {len(values)} rows of {split}, the first is "
            f"row {missing[0]}; fill it in, or remove these rows, since they could stand on both sides"
        )
    if isinstance(feature, datasets.ClassLabel):
        return [feature.names[value] for value in values]
    return [str(value).strip() for value in values]


def _join(batch: dict[str, list], column: str, root: str) -> dict[str, list]:
    return {column: [str(Path(root, path)) for path in batch[column]]}


def _is_encoded(feature: object) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and {"bytes", "path"} == set(feature)


def _type_name(feature: object) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
