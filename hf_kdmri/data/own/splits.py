"""Who goes where in a user's own set: its own splits, those dealt here, and what is to be said about them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TypeVar

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.splits import FOLDS, SPLITS, group_parts, split_by_group

Part = TypeVar("Part")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}
_FEW = 5  # training images below which a class is mentioned


def with_roles(parts: dict[str, Part], notes: list[str]) -> dict[str, Part]:
    """Name the splits train, validation and test; the only one of a set is to be dealt and so is called train."""
    if len(parts) == 1:
        return {"train": next(iter(parts.values()))}
    roles: dict[str, Part] = {}
    for key, part in parts.items():
        role = _ALIASES.get(key, key)
        if role in roles:
            raise OwnDataError(f"splits {key} and {role} both mean {role}; leave one of them out of the set")
        if role in SPLITS:
            roles[role] = part
        else:
            notes.append(f"split {key} is none of train, validation and test and is not used")
    if "train" not in roles:
        raise OwnDataError(
            f"the set has the splits {', '.join(parts)}, but no train; rename one, or give --group_column, which pools "
            "all of them"
        )
    return roles


def ordering_keys(digests: Sequence[str], seed: int) -> list[str]:
    """A name per file that depends on its content and the seed alone; sorting by it shuffles."""
    return [hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in digests]


def own_or_drawn(
    origin: Sequence[str], classes: Sequence[str], keys: Sequence[str], fold: int
) -> tuple[list[str], Sequence[str]]:
    """Keep the set's own splits and draw the missing ones; `keys` order the images and keep equal ones together."""
    missing = [split for split in SPLITS if split not in set(origin)]
    if len(missing) == 2:
        try:
            return split_by_group(keys, classes, fold), SPLITS
        except ValueError as error:
            raise OwnDataError(
                f"{len(keys)} images are too few for train, validation and test; give at least {FOLDS} of each class"
            ) from error
    assigned = list(origin)
    for split in missing:
        rows = [row for row, mine in enumerate(assigned) if mine == "train"]
        share = FOLDS if split == "test" else 8  # an eighth of 80 % is 10 %
        parts = group_parts([keys[row] for row in rows], [classes[row] for row in rows], share)
        for row in rows:
            if parts[keys[row]] == fold:
                assigned[row] = split
        if split not in assigned:
            raise OwnDataError(f"{len(rows)} training images are too few to draw {split} from them; give more")
    return assigned, missing


def leak_warning(columns: Sequence[str], used: Collection[str]) -> str:
    """What to say where nothing tells one person's images from another's; names the columns that might."""
    others = [column for column in columns if column not in used]
    return (
        "no --group_column was given, so nothing keeps the images of one person (patient, animal, scan) together. "
        "Slices of one person may stand both in training and in test, and then the results below show memory and say "
        "nothing about new people. If a column says who is on each image, give it: --group_column NAME "
        + (
            f"(other columns here: {', '.join(others)})"
            if others
            else "(this set has none; docs/own_data.md tells how to add one)"
        )
    )


def group_warnings(groups: Sequence[str], column: str) -> list[str]:
    """What to say of groups that hold nothing together."""
    if len(set(groups)) < len(groups):
        return []
    return [
        f"every image has a {column} of its own, so the split keeps nothing together; is this the column of the person?"
    ]


def used_names(names: Sequence[str], classes: Sequence[str], notes: list[str]) -> list[str]:
    """Leave out classes that the set names but never uses."""
    found = set(classes)
    if unused := [name for name in names if name not in found]:
        notes.append(f"no image has the class {_listed(unused)}; left out")
    used = [name for name in names if name in found]
    if len(used) < 2:
        raise OwnDataError(f"all images have the class {used[0]!r}; two classes at least are needed to tell apart")
    return used


def check_classes(
    names: Sequence[str], classes: Sequence[str], assigned: Sequence[str], unit: str, notes: list[str]
) -> None:
    """Refuse classes that nothing can be learned of; note those that are scarce.

    Args:
        names: all classes.
        classes: of each image.
        assigned: split of each image.
        unit: what was dealt, "groups" or "images".
        notes: what a user should know is added here.

    Raises:
        OwnDataError: a class has no training image.
    """
    counts = Counter(zip(assigned, classes, strict=True))
    if untaught := [name for name in names if not counts["train", name]]:
        there = sum(counts[split, untaught[0]] for split in SPLITS)
        raise OwnDataError(
            f"the training split has no image of {_listed(untaught)} ({there} in validation and test); {FOLDS} {unit} "
            "per class are enough for every fold: add some, remove the class, or try another --fold"
        )
    if few := [name for name in names if counts["train", name] < _FEW]:
        notes.append(f"fewer than {_FEW} training images: {_listed(few)}")
    for split in SPLITS[1:]:
        if absent := [name for name in names if not counts[split, name]]:
            notes.append(f"no {split} image of {_listed(absent)}: nothing is measured for it there")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
