"""What a card says of a data set that the user brought: its split and its size; nothing that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_kdmri.evaluation.report import escape_markdown

_MANY_CLASSES = 12


@dataclass(frozen=True)
class OwnDataFacts:
    """A user's own data set, for the card.

    Args:
        name: as given, or the last part of a folder.
        counts: split to class to number of images.
        hub_id: `user/name` where it came from the Hub.
        group_column: the column that keeps the images of one person together, or None.
        groups: split to number of groups, or None.
        one_class_per_group: whether a group has one class, so that groups can be scored.
        drawn: the splits that this package dealt; the others are the set's own.
        grey: all images are grey.
        wide_images: how many have more than 8 bits.
        warnings: further sentences.
    """

    name: str
    counts: Mapping[str, Mapping[str, int]]
    hub_id: str | None = None
    group_column: str | None = None
    groups: Mapping[str, int] | None = None
    one_class_per_group: bool = True
    drawn: Sequence[str] = ()
    grey: bool = False
    wide_images: int = 0
    warnings: Sequence[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """A name for the card's metadata: letters, digits, dashes."""
        cleaned = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in self.name.lower())
        return self.hub_id or cleaned.strip("-") or "own-data"


def own_split_text(data: OwnDataFacts) -> str:
    """Say in Markdown how the images were split, and what that means for the numbers."""
    if data.group_column is not None:
        column = escape_markdown(data.group_column)
        text = (
            f"Dealt by the column {column}, stratified by class: all images with one value of it are in the "
            "training, the validation **or** the test split, never in two. That the column names a person is the word "
            "of the one who trained this model."
        )
        if not data.one_class_per_group:
            text += " Some of its values have images of several classes, so they are not scored as a whole."
        return text
    leak = (
        "**No column said whose each image is, so images of one person may be in training and in test. Then the "
        "numbers below show memory and say nothing about new people.**"
    )
    if not data.drawn:
        return f"The data set's own training, validation and test splits. {leak}"
    if "train" in data.drawn:
        return f"Images dealt at random, stratified by class (equal files stay together). {leak}"
    own = " and ".join(split for split in data.counts if split not in data.drawn)
    return (
        f"The data set's own {own}; {' and '.join(data.drawn)} drawn at random from its training split, stratified by "
        f"class. {leak}"
    )


def count_lines(data: OwnDataFacts, labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table of images per split and, where they are few enough to read, per class."""
    shown = list(labels) if len(labels) <= _MANY_CLASSES else []
    heading = ["Split", "Images", *([] if data.groups is None else ["Groups"]), *shown]
    lines = []
    for split, counts in data.counts.items():
        groups = [] if data.groups is None else [f"{data.groups[split]:,}"]
        lines.append([split, f"{sum(counts.values()):,}", *groups, *(f"{counts[label]:,}" for label in shown)])
    return heading, lines


def name_classes(labels: Sequence[str]) -> str:
    """All class names, or how many there are and the first of them, to stand after "tells apart"."""
    if len(labels) <= _MANY_CLASSES:
        return " or ".join([", ".join(labels[:-1]), labels[-1]])
    return f"{len(labels)} classes ({', '.join(labels[:5])}, …)"
