"""The Figshare slices with their thumbnails, and how much each way of splitting them leaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from hf_kdmri.data.leakage import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    NearDuplicate,
    near_duplicates,
    nearest_neighbors,
    thumbnails,
)
from hf_kdmri.data.splits import CONFIGS, assign_splits, published_patients


@dataclass(frozen=True)
class Slices:
    """The prepared slices in order of slice number, and what comparisons need of them.

    Attributes:
        dataset: All splits together, in the order of the other fields.
        numbers: Slice number of each, as published.
        pids: Patient id of each.
        groups: Patient group of each.
        labels: Class of each, (N,) int.
        small: Thumbnails, (N, 48, 48) float32.
    """

    dataset: datasets.Dataset
    numbers: list[int]
    pids: list[str]
    groups: list[str]
    labels: np.ndarray
    small: np.ndarray

    @property
    def configs(self) -> tuple[str, ...]:
        """The configs that split these slices: the authors' folds, `"cvind"`, are known for published patients only."""
        published = set(self.pids) <= set(published_patients())
        return CONFIGS if published else tuple(config for config in CONFIGS if config != "cvind")

    def split(self, config: str, fold: int) -> np.ndarray:
        """Return `"train"`, `"validation"` or `"test"` per slice, (N,) str."""
        return np.array(assign_splits(self.pids, self.labels.tolist(), self.numbers, config, fold))


@dataclass(frozen=True)
class SplitAudit:
    """What the audit found in one fold of one config.

    Attributes:
        config: As in `hf_kdmri.data.splits.CONFIGS`.
        fold: 0-4.
        test: Index into `Slices` of each test slice, (T,).
        train: Of each other slice, validation included, (R,).
        shared_groups: Patient groups that stand on both sides.
        near_duplicates: Suspicious pairs; `index_a` is the test slice, `index_b` the other, both into `Slices`.
        nearest: Of each test slice, the most similar slice outside the test, index into `Slices`, (T,).
        correlation: Of these two thumbnails, (T,).
        correct: Whether these two have the same class, (T,) bool.
    """

    config: str
    fold: int
    test: np.ndarray
    train: np.ndarray
    shared_groups: int
    near_duplicates: list[NearDuplicate]
    nearest: np.ndarray
    correlation: np.ndarray
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """Accuracy of the 1-nearest-neighbour match, 0 to 1."""
        return float(self.correct.mean())

    @property
    def copied_test_slices(self) -> int:
        """How many test slices have at least one near duplicate outside the test."""
        return len({pair.index_a for pair in self.near_duplicates})


def read_slices(data_dir: str | Path, cache_dir: str | Path | None = None) -> Slices:
    """Prepare the Figshare slices, or take them from the cache, and make their thumbnails.

    Which config is prepared does not matter, since every one holds all slices.

    Args:
        data_dir: Folder with the published zips, or `.mat` files at any depth.
        cache_dir: Where prepared data go. Default: the cache of `datasets`.

    Raises:
        DataFolderError: the folder is missing or holds no slices.
        SliceFileError: a file is no valid slice.
    """
    builder = FigshareBrainTumor(
        config_name="patient_groups",
        fold=0,
        data_dir=str(data_dir),
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    builder.download_and_prepare(num_proc=2)
    pooled = datasets.concatenate_datasets(list(builder.as_dataset().values()))
    pooled = pooled.select(np.argsort(pooled["slice"][:]))
    return Slices(
        dataset=pooled,
        numbers=pooled["slice"][:],
        pids=pooled["pid"][:],
        groups=pooled["patient_group"][:],
        labels=np.array(pooled["label"][:]),
        small=thumbnails(pooled.cast_column("image", datasets.Image(decode=False))["image"]),
    )


def audit_split(
    slices: Slices,
    config: str,
    fold: int,
    *,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
) -> SplitAudit:
    """Compare the test slices of one fold of one config with all others.

    Args:
        slices: All slices.
        config: `"patient_groups"`, `"cvind"` or `"random_slices"`.
        fold: 0-4.
        max_distance: See `hf_kdmri.data.leakage.near_duplicates`. Default 10.
        min_correlation: See there. Default 0.96.

    Raises:
        ValueError: an unknown config or fold, a limit out of range, or `"cvind"` for slices of other patients.
    """
    in_test = slices.split(config, fold) == "test"
    test, train = np.flatnonzero(in_test), np.flatnonzero(~in_test)
    pairs = near_duplicates(
        slices.small[test], slices.small[train], max_distance=max_distance, min_correlation=min_correlation
    )
    nearest, correlation = nearest_neighbors(slices.small[train], slices.small[test])
    nearest = train[nearest]
    groups = np.array(slices.groups)
    return SplitAudit(
        config=config,
        fold=fold,
        test=test,
        train=train,
        shared_groups=len(set(groups[test]) & set(groups[train])),
        near_duplicates=[
            replace(pair, index_a=int(test[pair.index_a]), index_b=int(train[pair.index_b])) for pair in pairs
        ],
        nearest=nearest,
        correlation=correlation,
        correct=slices.labels[test] == slices.labels[nearest],
    )
