"""What a run trains and tests on, prepared once for all its processes."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import datasets
from accelerate import PartialState

from hf_kdmri.data import write_phantom_archives
from hf_kdmri.data.loading import limit_splits, load_slices
from hf_kdmri.data.own.loading import OwnData, load_own_data
from hf_kdmri.data.own.stream import open_own_stream
from hf_kdmri.data.streams import StreamedViews
from hf_kdmri.data.views import ViewDataset, prepare_views
from hf_kdmri.training.options import OptionError, RunOptions
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.wording import counted


@dataclass(frozen=True)
class RunData:
    """The data of a run, and what to call them.

    Args:
        splits: train (unless it is streamed), validation and test with `image`, `label` (`ClassLabel`) and, where
            known, `patient_group`.
        source: what the images are, in a few words that stand wherever a result is shown.
        split: how they were split, likewise.
        fold: 0 to 4, or None where the set brought its own splits.
        own: what is known of a user's own set; None for the Figshare slices and phantoms.
    """

    splits: datasets.DatasetDict
    source: str
    split: str
    fold: int | None
    own: OwnData | None = None

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the label numbers."""
        return self.splits["test"].features["label"].names

    @property
    def stream(self) -> datasets.IterableDataset | None:
        """The training split, where it is streamed."""
        return None if self.own is None else self.own.stream

    def training_names(self) -> list[Any] | None:
        """What the training images are called in messages; None for a stream's, which are known by their content."""
        return None if self.stream is not None else self.splits["train"]["slice"][:]

    @property
    def unit(self) -> str:
        """What one image is called."""
        return "slices" if self.own is None else "images"

    @property
    def title(self) -> str:
        """Source, split and fold, for headings."""
        return describe(self.source, self.split, self.fold)

    @property
    def has_groups(self) -> bool:
        """Whether each image says whose it is."""
        return "patient_group" in self.splits["test"].column_names

    @property
    def group_counts(self) -> dict[str, int] | None:
        """Patient groups of each split, None where unknown."""
        if not self.has_groups:
            return None
        return {name: len(set(split["patient_group"][:])) for name, split in self.splits.items()}

    @property
    def split_is_disjoint(self) -> bool:
        """Whether no patient stands on both sides of the split, as far as is known."""
        return self.split != "random_slices"

    def groups(self, split: str) -> list[str] | None:
        """Whose each image of a split is, for scores over patients; None where unknown or where these make no sense."""
        if not self.has_groups or (self.own is not None and not self.own.one_class_per_group):
            return None
        return self.splits[split]["patient_group"][:]

    def counts(self, split: str) -> dict[str, int]:
        """Images of each class of a split."""
        numbers = Counter(self.splits[split]["label"][:])
        return {name: numbers[index] for index, name in enumerate(self.labels)}


def describe(source: str, split: str, fold: int | None) -> str:
    """Source, split and fold in one line."""
    return f"{source}, split {split}" + ("" if fold is None else f", fold {fold}")


def prepare_data(options: RunOptions, run: RunFolder, state: PartialState) -> RunData:
    """Generate, download or find the images, split and check them, and say what came of it.

    Raises:
        ValueError: the data cannot be used.
        OSError: they are not there.
    """
    data = _own_data(options, state) if options.data.dataset_name is not None else _slices(options, run, state)
    counts, groups = [], data.group_counts
    for name, split in data.splits.items():
        counts.append(f"{name} {len(split)} {data.unit}")
        if groups is not None:
            counts[-1] += f" of {counted(groups[name], 'group' if data.own else 'patient group')}"
    if data.stream is not None:
        counts.insert(0, f"train streamed from {data.stream.num_shards} shards")
    classes = f"{len(data.labels)} classes; " if data.own else ""
    state.print(f"[1/5] Data: {data.title}: {classes}{', '.join(counts)}")
    return data if data.stream is not None else _without_lone_image(data, options, state)


def _own_data(options: RunOptions, state: PartialState) -> RunData:
    data, seed = options.data, options.training.seed
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    where: dict[str, Any] = {"config_name": data.dataset_config_name, "cache_dir": data.cache_dir}
    with state.main_process_first():
        if data.streaming:
            own = open_own_stream(data.dataset_name or "", **where, **columns)
        else:
            own = load_own_data(
                data.dataset_name or "",
                **where,
                **columns,
                group_column=data.group_column,
                fold=data.fold,
                seed=seed,
                num_proc=data.preprocessing_num_workers,
            )
        splits = limit_splits(own.splits, data.max_train_samples, data.max_eval_samples, seed)
    for warning in own.warnings:
        state.print(f"\nWARNING: {warning}\n", file=sys.stderr)
    for note in own.notes:
        state.print(f"[1/5] Data: {note}")
    return RunData(splits, own.name, own.split, own.fold, own)


def _slices(options: RunOptions, run: RunFolder, state: PartialState) -> RunData:
    data, seed = options.data, options.training.seed
    data_dir, cache_dir = data.data_dir, data.cache_dir
    if data.phantom_slices is not None:
        phantoms = run.path / "phantoms"
        data_dir, cache_dir = str(phantoms), cache_dir or str(run.path / "cache")
        if state.is_main_process:
            if not phantoms.is_dir():
                state.print(f"[1/5] Data: writing {data.phantom_slices} generated phantom slices to {phantoms}")
            # also where they were begun: it goes on after a kill, and leaves finished ones alone
            write_phantom_archives(phantoms, slices=data.phantom_slices, patients=data.phantom_slices // 5, seed=seed)
        state.wait_for_everyone()
    with state.main_process_first():
        splits = load_slices(
            data_dir=data_dir,
            cache_dir=cache_dir,
            split=data.split,
            fold=data.fold,
            seed=seed,
            max_train_samples=data.max_train_samples,
            max_eval_samples=data.max_eval_samples,
            num_proc=data.preprocessing_num_workers,
        )
    source = "Figshare slices re-encoded to 8 bit" if is_8_bit(splits) else "Figshare slices"
    return RunData(splits, "generated phantoms" if data.phantom_slices else source, data.split, data.fold)


def is_8_bit(splits: datasets.DatasetDict) -> bool:
    """Whether no raw intensity of the Figshare slices is above 255; those of the published files reach thousands."""
    return max(max(split["raw_max"]) for split in splits.values()) <= 255


def _without_lone_image(data: RunData, options: RunOptions, state: PartialState) -> RunData:
    """Leave one training image out where the last batch would hold just one.

    Batch normalisation after pooling (MobileNetV4) cannot train on a single image and would stop. One image is named
    and left out for good; `dataloader_drop_last` would leave out another one in every epoch.
    """
    train, batch = data.splits["train"], options.training.per_device_train_batch_size
    if len(train) < 2:
        raise ValueError(f"the training split has {len(train)} image; at least 2 are needed")
    if state.num_processes > 1 or batch == 1 or len(train) % batch != 1 or options.training.dataloader_drop_last:
        return data
    numbers = train["label"][:]
    common = Counter(numbers).most_common(1)[0][0]
    lone = len(numbers) - 1 - numbers[::-1].index(common)
    rows = [row for row in range(len(numbers)) if row != lone]
    state.print(
        f"[1/5] Data: {len(train)} training images would make a last batch of 1, on which batch normalisation cannot "
        f"train; image {lone} (class {data.labels[common]!r}) is left out"
    )
    return dataclasses.replace(data, splits=datasets.DatasetDict({**data.splits, "train": train.select(rows)}))


def training_views(data: RunData, size: int, options: RunOptions, state: PartialState) -> ViewDataset | StreamedViews:
    """What a stage trains on: the training split, resized once, or this process's share of the stream.

    Raises:
        OptionError: a term that needs masks for images that have none, or more workers than a stream has shards for.
    """
    if data.own is None or data.own.stream is None:
        return views_of(data.splits["train"], size, options, state, for_training=True)
    views = StreamedViews(
        data.own.stream,
        size,
        options.training.per_device_train_batch_size,
        grey=data.own.grey,
        seed=options.training.seed,
        buffer=options.data.stream_buffer,
        process_index=state.process_index,
        num_processes=state.num_processes,
    )
    try:
        views.check_workers(options.training.dataloader_num_workers)
    except ValueError as error:
        raise OptionError(str(error)) from error
    return views


def views_of(
    split: datasets.Dataset, size: int, options: RunOptions, state: PartialState, *, for_training: bool = False
) -> ViewDataset:
    """Resize a split once, for training with the masks that a term needs; every process reads the same file.

    Raises:
        OptionError: a term that needs masks, for images that have none.
    """
    num_proc = options.data.preprocessing_num_workers
    with state.main_process_first():
        views = prepare_views(split, size, num_proc=num_proc)
        if for_training and options.training.needs_masks:
            if "mask" not in split.column_names:
                name = "lesion_weighting" if options.training.lesion_weighting else "mask_weight"
                raise OptionError(f"{name} needs a column 'mask', which these data lack; leave it out")
            views.masks = prepare_views(
                split, size, image_column="mask", num_proc=num_proc, description="Resizing masks"
            )
    return views
