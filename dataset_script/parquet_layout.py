"""Which slice goes into which Parquet shard, so that all folds share one copy of the images.

The place of a slice in a configuration is one letter per fold, for instance `ettvt`: test in fold 0, validation in fold
3, train in the others. All slices of a shard have the same place, and the place is in the shard's name. So a split of a
fold is the shards that a glob matches, `data/patient_groups-e????-*` for the test split of fold 0, and no picture is
written twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_kdmri.data.splits import CONFIGS, FOLDS, SPLITS, assign_splits

DATA = "data"
ROWS_PER_SHARD = 500  # about 50 MB of 8-bit slices
SEED = 0  # of random_slices
LETTERS = {"train": "t", "validation": "v", "test": "e"}
# random_slices cuts across patients: together with the others it would leave shards of one slice
SHARED = ("patient_groups", "cvind")


@dataclass(frozen=True)
class Shard:
    """One Parquet file to be written.

    Attributes:
        name: File name below `data/`.
        rows: Positions of its slices among all slices.
    """

    name: str
    rows: tuple[int, ...]


def find_places(
    pids: Sequence[str], labels: Sequence[int], slices: Sequence[int], configs: Sequence[str]
) -> dict[str, list[str]]:
    """Return the place of every slice in every configuration, one letter per fold.

    Args:
        pids: Patient id of each slice.
        labels: Class index of each slice.
        slices: Number of each slice.
        configs: Names of configurations.

    Returns:
        For each configuration, a string of five letters (t, v or e) per slice.

    Raises:
        ValueError: as `assign_splits`, for instance `"cvind"` for other than the published patients.
    """
    places = {}
    for config in configs:
        folds = [assign_splits(pids, labels, slices, config, fold, SEED) for fold in range(FOLDS)]
        places[config] = ["".join(LETTERS[split] for split in splits) for splits in zip(*folds, strict=True)]
    return places


def plan_shards(places: Mapping[str, Sequence[str]]) -> list[Shard]:
    """Group slices by place, `ROWS_PER_SHARD` to a shard at most, in the order given.

    Example:
        >>> for shard in plan_shards({"patient_groups": ["ettvt", "tettv", "ettvt"]}):
        ...     print(shard)
        Shard(name='patient_groups-ettvt-00000.parquet', rows=(0, 2))
        Shard(name='patient_groups-tettv-00000.parquet', rows=(1,))
    """
    shared = [config for config in SHARED if config in places]
    copies = [shared] if shared else []
    copies += [[config] for config in places if config not in SHARED]
    shards = []
    for copy in copies:
        members: dict[str, list[int]] = {}
        for row, letters in enumerate(zip(*(places[config] for config in copy), strict=True)):
            stem = "-".join(f"{config}-{place}" for config, place in zip(copy, letters, strict=True))
            members.setdefault(stem, []).append(row)
        for stem, rows in sorted(members.items()):
            for number, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
                shards.append(Shard(f"{stem}-{number:05d}.parquet", tuple(rows[start : start + ROWS_PER_SHARD])))
    return shards


def split_glob(config: str, fold: int, split: str) -> str:
    """Return the glob, relative to the folder, that matches the shards of one split and no others.

    Example:
        >>> split_glob("cvind", 2, "validation")
        'data/*cvind-??v??-*.parquet'
    """
    place = "?" * fold + LETTERS[split] + "?" * (FOLDS - 1 - fold)
    return f"{DATA}/{'*' if config == 'cvind' else ''}{config}-{place}-*.parquet"  # cvind may stand second in a name


def hub_config_name(config: str, fold: int) -> str:
    """Return the name for `load_dataset`: the configuration's own for fold 0.

    Example:
        >>> hub_config_name("cvind", 0), hub_config_name("cvind", 3)
        ('cvind', 'cvind_fold3')
    """
    return config if fold == 0 else f"{config}_fold{fold}"


def is_shard_name(name: str) -> bool:
    """True if a file name is one that `plan_shards` gives."""
    return name.endswith(".parquet") and name.split("-")[0] in CONFIGS


def card_configs(places: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the card's `configs` field: every configuration and fold with the globs of its splits."""
    configs: list[dict[str, Any]] = []
    for config in places:
        for fold in range(FOLDS):
            files = [{"split": split, "path": split_glob(config, fold, split)} for split in SPLITS]
            configs.append({"config_name": hub_config_name(config, fold), "data_files": files})
    configs[0]["default"] = True
    return configs
