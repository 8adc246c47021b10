"""What labels mean: a model's classes by name, in any case, and a map for labels of other sets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


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


def checked_map(mapping: Mapping[str, str | None], class_names: Sequence[str]) -> dict[str, str | None]:
    """The map with its classes as the model writes them."""
    for name, target in mapping.items():
        if target is not None and same_name(target, class_names) is None:
            raise ValueError(
                f"the label map turns {name!r} into {target!r}, which the model does not know"
                f"{nearest(target, class_names)}; it knows {', '.join(class_names)}. Repeat --label-map for each name"
            )
    return {n.casefold(): None if target is None else same_name(target, class_names) for n, target in mapping.items()}


def class_of(label: str, mapping: Mapping[str, str | None], class_names: Sequence[str]) -> str | None:
    """The model's class of a label, or None where the map skips it; a label that is neither must have been refused."""
    key = label.casefold()
    return mapping[key] if key in mapping else same_name(label, class_names)


def same_name(label: str, class_names: Sequence[str]) -> str | None:
    """The class of that very name, or the one class that has it in another case."""
    if label in class_names:
        return label
    alike = [name for name in class_names if name.casefold() == label.casefold()]
    return alike[0] if len(alike) == 1 else None


def nearest_name(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like a name, or None where none is like it."""
    names = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    return names[near[0]] if near else None


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Name the nearest candidate in brackets, for the end of a message."""
    near = nearest_name(name, candidates)
    return "" if near is None else f" (the nearest is {near})"


def unused_names(mapping: Mapping[str, str | None], labels: Iterable[str]) -> list[str]:
    """Names in the map that no label has."""
    present = {label.strip().casefold() for label in labels}
    return [name for name in mapping if name not in present]
