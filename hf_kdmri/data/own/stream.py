"""A user's data set whose training split is streamed; validation and test, which are looked at whole, are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from hf_kdmri.data.own.columns import OwnDataError, check_columns
from hf_kdmri.data.own.loading import OwnData
from hf_kdmri.data.own.places import read_cell
from hf_kdmri.data.own.source import find_set
from hf_kdmri.data.own.splits import with_roles
from hf_kdmri.data.pictures import is_grey

_HELD = ("validation", "test")
_LEAK = (
    "the set's own splits are used, and of a stream nothing can be dealt anew: if images of one person (patient, "
    "animal, scan) stand both in training and in test, the results below show memory and say nothing about new people. "
    "Deal by person before the set is saved: hf_kdmri.data.split_by_group"
)


def open_own_stream(
    name: str,
    *,
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    cache_dir: str | Path | None = None,
) -> OwnData:
    """Open a set without reading its training images.

    Args:
        name: Hub name, or a folder of Parquet files, pictures in class folders, or what else `load_dataset` streams.
        config_name: configuration of the set, where it has several.
        image_column: name of the column of type `Image`.
        label_column: name of the column of type `ClassLabel`.
        cache_dir: where validation and test are kept; default is the cache of `datasets`.

    Returns:
        The set; its `splits` are validation and test, its `stream` has the columns `image`, not decoded, and `label`.

    Raises:
        OwnDataError: the set has no split of one of the three names, or columns whose types a stream cannot find out.
    """
    source = find_set(name, config_name, cache_dir)
    raw = source.stream()
    notes = ["the training split was streamed: its images were neither counted nor compared with the test images"]
    parts = with_roles(dict(raw), notes)
    if missing := [split for split in ("train", *_HELD) if split not in parts]:
        raise OwnDataError(
            f"the set has no split {' and no split '.join(missing)} (it has {', '.join(raw)}), and one cannot be dealt "
            "from a stream; save the set with its splits, or leave streaming out"
        )
    names = _check_types(parts, {"image_column": image_column, "label_column": label_column})
    mode = parts["train"].features[image_column].mode
    if mode is None:
        notes.append(
            "the type of the image column does not say that all images are grey, so three channels are trained on; "
            "save the set with datasets.Image(mode='L') if they are"
        )
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "slice": datasets.Value("int64")}
    kept: dict[str, datasets.Dataset] = {}
    for split in _HELD:
        facts = (name, config_name, split, image_column, label_column)
        kept[split] = datasets.Dataset.from_generator(
            _rows,
            features=datasets.Features(features),
            cache_dir=None if cache_dir is None else str(cache_dir),
            # A Hub set's files are named by their commit, which datasets makes the fingerprint of.
            fingerprint=None if source.folder is None else _fingerprint(source.folder, facts),
            gen_kwargs={
                "stream": _renamed(parts[split], image_column, label_column, source.places),
                "first": sum(map(len, kept.values())),  # its place tells an image from those of the other split, too
            },
        )
    for split, rows in kept.items():
        if not len(rows) or any(value is None or value < 0 for value in rows["label"][:]):
            raise OwnDataError(f"split {split} is empty, or has images without a label; mend it")
    return OwnData(
        splits=datasets.DatasetDict(kept),
        name=source.short_name,
        hub_id=source.hub_id,
        group_column=None,
        drawn=(),
        fold=None,
        grey=mode is not None and is_grey(mode),
        wide_images=0,
        one_class_per_group=True,
        warnings=[_LEAK],
        notes=notes,
        stream=_renamed(parts["train"], image_column, label_column, source.places),
    )


def _check_types(parts: dict[str, datasets.IterableDataset], wanted: dict[str, str]) -> list[str]:
    """Refuse columns that are not an `Image` and a `ClassLabel` of one list of names; return that."""
    names: list[str] = []
    for split in ("train", *_HELD):
        features = parts[split].features
        if features is None:
            raise OwnDataError(
                f"split {split} does not say the types of its columns before it is read; save the set as Parquet"
            )
        check_columns(list(features), features, wanted)
        image, label = features[wanted["image_column"]], features[wanted["label_column"]]
        if not isinstance(image, datasets.Image) or not isinstance(label, datasets.ClassLabel):
            raise OwnDataError(
                f"split {split} has the types {type(image).__name__} and {type(label).__name__} for image and label; a "
                "stream needs Image and ClassLabel, since the classes must be known before the first image: save the "
                "set with these types, or leave streaming out"
            )
        if names and label.names != names:
            raise OwnDataError(f"split {split} has the classes {label.names}, train has {names}; save it with those")
        names = label.names
    return names


def _renamed(
    stream: datasets.IterableDataset, image_column: str, label_column: str, places: tuple[str, ...]
) -> datasets.IterableDataset:
    stream = stream.select_columns([image_column, label_column])
    renames = {image_column: "image", label_column: "label"}
    stream = stream.rename_columns({old: new for old, new in renames.items() if old != new})
    stream = stream.cast_column("image", datasets.Image(decode=False))
    return stream.map(partial(_with_bytes, places=places), features=stream.features)


def _with_bytes(row: dict[str, Any], places: tuple[str, ...]) -> dict[str, Any]:
    return {**row, "image": read_cell(row["image"], places)}


def _rows(stream: datasets.IterableDataset, first: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(stream, start=first):
        yield {"image": row["image"], "label": row["label"], "slice": number}


def _fingerprint(folder: Path, facts: tuple[object, ...]) -> str:
    """Another one whenever a file of the folder is."""
    digest = hashlib.sha256(repr(facts).encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        digest.update(f"{file.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]
