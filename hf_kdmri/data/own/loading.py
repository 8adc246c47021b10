"""Any image classification set that `datasets.load_dataset` reads, split and checked for a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from hf_kdmri.data.own.columns import OwnDataError, as_image_column, check_columns, read_classes, read_groups
from hf_kdmri.data.own.places import check_place
from hf_kdmri.data.own.source import find_set
from hf_kdmri.data.own.splits import (
    check_classes,
    group_warnings,
    leak_warning,
    ordering_keys,
    own_or_drawn,
    used_names,
    with_roles,
)
from hf_kdmri.data.pictures import PictureError, decode_picture, is_grey, is_wide, read_picture_bytes, stored_mode
from hf_kdmri.data.splits import SPLITS, check_fold, split_by_group
from hf_kdmri.wording import counted


@dataclass(frozen=True)
class OwnData:
    """A user's data set, ready to train on.

    Args:
        splits: train, validation and test with the columns `image`, `label` (`ClassLabel`) and, where a group column
            was given, `patient_group`.
        name: as given; of a folder the last part.
        hub_id: `user/name` where it came from the Hub.
        group_column: its name, or None.
        drawn: the splits that were dealt here; the others are the set's own.
        fold: of the splits dealt here; None where none was.
        grey: every image has one channel.
        wide_images: how many have more than 8 bits, and are windowed.
        one_class_per_group: False if a group holds images of several classes, so that no group can be scored as one.
        warnings: what may make the numbers false.
        notes: what else a user should know.
        stream: the training split, where it is streamed and not among `splits`; images not decoded.
    """

    splits: datasets.DatasetDict
    name: str
    hub_id: str | None
    group_column: str | None
    drawn: tuple[str, ...]
    fold: int | None
    grey: bool
    wide_images: int
    one_class_per_group: bool
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stream: datasets.IterableDataset | None = None

    @property
    def split(self) -> str:
        """How it was split, in a few words."""
        if self.group_column is not None:
            return f"by {self.group_column}"
        if not self.drawn:
            return "as published"
        if "train" in self.drawn:
            return "random images"
        return f"as published, {' and '.join(self.drawn)} drawn at random"


@dataclass(frozen=True)
class _Part:
    """One split as it came: encoded images, the name of each one's class, and its group where a column says it."""

    images: datasets.Dataset
    classes: list[str]
    groups: list[str]


def load_own_data(
    name: str,
    *,
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    group_column: str | None = None,
    fold: int = 0,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> OwnData:
    """Load a set and see to it that it has train, validation and test.

    With a group column, all splits of the set are pooled and dealt anew, so that no group stands in two of them.
    Without one, its own splits are kept, and those that are missing are drawn from its training split, stratified by
    class: a fifth for the test, an eighth for validation; a set of one split is dealt 70 : 10 : 20. What is drawn
    follows from a hash of each file, not from the order of the rows or from a library's random numbers, and equal
    files stay together.

    Args:
        name: Hub name, or a folder of Parquet files, of pictures in class folders, or of whatever `load_dataset` reads.
        config_name: configuration of the set, where it has several.
        image_column: name of the image column.
        label_column: name of the label column; `read_classes` tells its types.
        group_column: names the person (patient, animal, scan) on each image, or None.
        fold: 0 to 4; only for splits that are dealt here.
        seed: of splits that are drawn at random.
        cache_dir: where the prepared set is kept; default is the cache of `datasets`.
        num_proc: processes that check the images.

    Returns:
        The set, and what is to be said about it.

    Raises:
        OwnDataError: the set, its columns, labels or classes cannot be used.
        PictureError: an image cannot be read.
        ValueError: a fold that does not exist, or fewer groups than three splits need.
    """
    check_fold(fold)
    notes: list[str] = []
    source = find_set(name, config_name, cache_dir)
    raw = source.load()
    wanted = {"image_column": image_column, "label_column": label_column}
    if group_column is not None:
        wanted["group_column"] = group_column
    parts, names = _labelled_parts(raw, wanted, source.folder, notes)
    if group_column is None:
        parts = with_roles(parts, notes)
    pool = datasets.concatenate_datasets([part.images for part in parts.values()])
    origin = [split for split, part in parts.items() for _ in part.classes]
    classes = [name for part in parts.values() for name in part.classes]
    groups = [group for part in parts.values() for group in part.groups]
    digests, modes = _inspect(pool, origin, source.places, num_proc)
    drawn: Sequence[str] = SPLITS
    if group_column is not None:
        try:
            assigned = split_by_group(groups, classes, fold)
        except ValueError as error:
            raise OwnDataError(f"group_column {group_column!r}: {error}") from error
        warnings = group_warnings(groups, group_column)
    else:
        assigned, drawn = own_or_drawn(origin, classes, ordering_keys(digests, seed), fold)
        warnings = [leak_warning(next(iter(raw.values())).column_names, wanted.values())]
    if fold and not drawn:
        raise OwnDataError(
            f"fold is {fold}, but the set brings its own train, validation and test, so there are no folds to choose "
            "from; leave --fold out, or give --group_column to deal anew"
        )
    names = used_names(names, classes, notes)
    check_classes(names, classes, assigned, "groups" if groups else "images", notes)
    seen = {digest for digest, split in zip(digests, assigned, strict=True) if split == "train"}
    test = [digest for digest, split in zip(digests, assigned, strict=True) if split == "test"]
    if twice := sum(digest in seen for digest in test):
        warnings.append(
            f"{twice} of {counted(len(test), 'test image')} {'is' if twice == 1 else 'are'}, byte for byte, in the "
            "training split as well"
        )
    wide = sum(map(is_wide, modes))
    if wide:
        notes.append(
            f"{counted(wide, 'image')} of more than 8 bits {'is' if wide == 1 else 'are'} windowed, each between its "
            "own percentiles 0.1 and 99.9"
        )

    number = {name: index for index, name in enumerate(names)}
    pool = pool.cast_column("image", datasets.Image())
    # `datasets` makes the fingerprints itself, which its types do not tell.
    label = {"name": "label", "column": [number[name] for name in classes]}
    pool = pool.add_column(**label, feature=datasets.ClassLabel(names=names))  # type: ignore[arg-type]
    # Its place in the whole set tells an image from all others, however the set is divided.
    pool = pool.add_column(name="slice", column=list(range(len(pool))))  # type: ignore[call-arg]
    if groups:
        pool = pool.add_column(name="patient_group", column=groups)  # type: ignore[call-arg]
    return OwnData(
        splits=datasets.DatasetDict(
            {split: pool.select([row for row, mine in enumerate(assigned) if mine == split]) for split in SPLITS}
        ),
        name=source.short_name,
        hub_id=source.hub_id,
        group_column=group_column,
        drawn=tuple(drawn),
        fold=fold if drawn else None,
        grey=all(map(is_grey, modes)),
        wide_images=wide,
        one_class_per_group=not groups or len(set(zip(groups, classes, strict=True))) == len(set(groups)),
        warnings=warnings,
        notes=notes,
    )


def _labelled_parts(
    raw: datasets.DatasetDict, wanted: dict[str, str], folder: Path | None, notes: list[str]
) -> tuple[dict[str, _Part], list[str]]:
    """Read the labelled splits; also return all class names."""
    image, label, group = wanted["image_column"], wanted["label_column"], wanted.get("group_column")
    labelled = {key: split for key, split in raw.items() if label in split.column_names and len(split)}
    for split in labelled.values() if labelled else raw.values():
        check_columns(split.column_names, split.features, wanted)
    names, classes = read_classes(labelled, label)
    parts = {}
    for key in raw:
        if key not in labelled or all(value is None for value in classes[key]):
            notes.append(f"split {key} has no labels and is not used")
            continue
        if unknown := classes[key].count(None):
            raise OwnDataError(
                f"{unknown} of {len(classes[key])} images of split {key} have no label, the first of them in row "
                f"{classes[key].index(None)}; label or remove them"
            )
        images = as_image_column(labelled[key].select_columns([image]), image, folder)
        parts[key] = _Part(
            images=images if image == "image" else images.rename_column(image, "image"),
            classes=[str(value) for value in classes[key]],
            groups=[] if group is None else read_groups(labelled[key], group, key),
        )
    if not parts:
        raise OwnDataError(f"no split has labels in the column {label!r}; name another --label_column")
    return parts, names


def _inspect(
    pool: datasets.Dataset, origin: Sequence[str], places: tuple[str, ...], num_proc: int | None
) -> tuple[list[str], list[str]]:
    """Decode every image once, before anything trains, and return a hash of each file and its mode."""
    seen = pool.select_columns(["image"]).map(
        _inspect_batch,
        fn_kwargs={"places": places},
        batched=True,
        batch_size=64,
        num_proc=num_proc,
        remove_columns=["image"],
        features=datasets.Features({key: datasets.Value("string") for key in ("digest", "mode", "problem")}),
        desc="Checking images",
    )
    bad = [(row, problem) for row, problem in enumerate(seen["problem"][:]) if problem]
    if bad:
        rows = {row: row - origin.index(origin[row]) for row, _ in bad[:3]}
        told = "; ".join(f"{origin[row]} row {rows[row]} {problem}" for row, problem in bad[:3])
        raise PictureError(f"{len(bad)} of {len(pool)} images cannot be used: {told}{'; …' if len(bad) > 3 else ''}")
    return seen["digest"][:], seen["mode"][:]


def _inspect_batch(batch: dict[str, list[Any]], places: tuple[str, ...]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {"digest": [], "mode": [], "problem": []}
    for cell in batch["image"]:
        digest = mode = problem = ""
        try:
            check_place(cell, places)
            encoded = read_picture_bytes(cell)
            digest, mode = hashlib.sha256(encoded).hexdigest(), stored_mode(encoded)
            decode_picture(encoded)
        except PictureError as error:
            path = (cell or {}).get("path")
            problem = f"({path}) {error}" if path else str(error)
        for column, value in zip(columns.values(), (digest, mode, problem), strict=True):
            column.append(value)
    return columns
