"""The Figshare slices, split; and subsets of any splits."""

from __future__ import annotations

from pathlib import Path

import datasets


def load_slices(
    *,
    data_dir: str | Path | None,
    cache_dir: str | Path | None = None,
    split: str = "patient_groups",
    fold: int = 0,
    seed: int = 0,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    num_proc: int | None = None,
) -> datasets.DatasetDict:
    """Prepare the Figshare slices and return train, validation and test.

    Args:
        data_dir: folder with the published files, or None to download them.
        cache_dir: where the prepared set is kept; default is the cache of `datasets`.
        split: configuration of `FigshareBrainTumor`.
        fold: tested on, 0 to 4.
        seed: draws the subsets and the split `random_slices`.
        max_train_samples: keep a random subset of this many training slices.
        max_eval_samples: likewise of validation and of test.
        num_proc: processes that read.

    Returns:
        The three splits, with the builder's columns.
    """
    # dataset_script reads with this package's readers, so it is imported when asked for and not above.
    from dataset_script.figshare_brain_tumor import FigshareBrainTumor

    builder = FigshareBrainTumor(
        config_name=split,
        fold=fold,
        seed=seed,
        data_dir=None if data_dir is None else str(data_dir),
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    builder.download_and_prepare(num_proc=num_proc)
    splits = builder.as_dataset()
    return limit_splits(splits, max_train_samples, max_eval_samples, seed)


def limit_splits(
    splits: datasets.DatasetDict, max_train_samples: int | None, max_eval_samples: int | None, seed: int
) -> datasets.DatasetDict:
    """Keep a random subset of each split.

    Args:
        splits: train, validation and test, or some of them.
        max_train_samples: of training images, None for all.
        max_eval_samples: of validation and of test images, None for all.
        seed: draws the subsets.
    """
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    return datasets.DatasetDict({name: _subset(split, limits[name], seed) for name, split in splits.items()})


def _subset(dataset: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(limit)).flatten_indices()
