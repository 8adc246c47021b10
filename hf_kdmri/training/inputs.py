"""What a run trains and tests on, prepared once for all its processes."""

from __future__ import annotations

import datasets
from accelerate import PartialState

from hf_kdmri.data import write_phantom_archives
from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.views import ViewDataset, prepare_views
from hf_kdmri.training.options import RunOptions
from hf_kdmri.training.run_folder import RunFolder


def prepare_data(options: RunOptions, run: RunFolder, state: PartialState) -> datasets.DatasetDict:
    """Generate, download or find the slices, and read them into the three splits."""
    data, seed = options.data, options.training.seed
    data_dir, cache_dir = data.data_dir, data.cache_dir
    if data.phantom_slices is not None:
        phantoms = run.path / "phantoms"
        data_dir, cache_dir = str(phantoms), cache_dir or str(run.path / "cache")
        if state.is_main_process and not phantoms.is_dir():
            state.print(f"[1/5] Data: writing {data.phantom_slices} generated phantom slices to {phantoms}")
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
    counts = ", ".join(
        f"{name} {len(split)} slices of {len(set(split['patient_group']))} patient groups"
        for name, split in splits.items()
    )
    state.print(f"[1/5] Data: split {data.split}, fold {data.fold}: {counts}")
    return splits


def views_of(split: datasets.Dataset, size: int, options: RunOptions, state: PartialState) -> ViewDataset:
    """Resize a split once; every process reads the same file."""
    with state.main_process_first():
        return prepare_views(split, size, num_proc=options.data.preprocessing_num_workers)
