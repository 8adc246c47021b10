"""The options that say what a run learns from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from hf_kdmri.data.augmentation import VIEW_STYLES


class OptionError(ValueError):
    """An option that cannot be used, with the nearest one that can."""


_SPLITS = ["patient_groups", "cvind", "random_slices"]


@dataclass
class DataOptions:
    """Where the slices come from and how they are split."""

    _argument_group_name = "data"

    config: list[str] | None = field(
        default=None, metadata={"help": "YAML files of options; a later file overrides an earlier one, a flag all."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the published Figshare zips, their one zip, or .mat files; without it they are "
            "downloaded."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Train on another data set instead: a Hub name or a folder (Parquet files, or pictures in class "
            "folders), with any number of classes."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of dataset_name, where it has several."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of dataset_name with the images."})
    label_column: str = field(default="label", metadata={"help": "Column of dataset_name with the classes."})
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of dataset_name that says whose each image is (patient, animal, scan): no one of them then "
            "stands in two splits. Without it the set's own splits are used, or random ones, which may leak."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training split of dataset_name as a stream that is never held as a whole; needs "
            "max_steps, and a set that brings its own train, validation and test (docs/scale.md)."
        },
    )
    stream_buffer: int = field(
        default=1000,
        metadata={"help": "Encoded images of a stream, per worker, among which the next is drawn; 1: in order."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where the prepared data set is kept."})
    phantom_slices: int | None = field(
        default=None,
        metadata={"help": "Generate this many phantom slices into the run folder and use them as the data."},
    )
    split: str = field(
        default="patient_groups",
        metadata={
            "help": "Split of the Figshare slices: patient_groups (default), cvind (the authors' folds) or "
            "random_slices (leaks).",
            "choices": _SPLITS,
        },
    )
    fold: int = field(
        default=0, metadata={"help": "Fold that is tested on, 0 to 4, where this program deals the splits."}
    )
    folds: list[str] | None = field(
        default=None,
        metadata={
            "help": "Cross-validate: all, or several of 0 to 4. Each fold is trained in a folder of its own; the test "
            "predictions are pooled."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most this many images."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on at most this many images each."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read and resize images."}
    )
    augment: bool = field(default=True, metadata={"help": "Train on a random view of each image, new in every epoch."})
    view_style: str = field(
        default="plain",
        metadata={
            "help": "What random views change: plain, geometry and contrast; robust, also tones, sharpness, noise, "
            "marks and JPEG, for pictures of other origin.",
            "choices": list(VIEW_STYLES),
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete an earlier run in output_dir first."})

    def __post_init__(self) -> None:
        """Refuse numbers that make no run."""
        if self.split not in _SPLITS:
            raise OptionError(f"split is {self.split!r}; choose one of {', '.join(_SPLITS)}")
        if not 0 <= self.fold <= 4:
            raise OptionError(f"fold is {self.fold}; the folds are 0, 1, 2, 3 and 4")
        self.fold_numbers()
        for name in ("max_train_samples", "max_eval_samples", "phantom_slices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be at least 1, or absent for all slices")
        if self.view_style not in VIEW_STYLES:
            raise OptionError(f"view_style is {self.view_style}; choose one of {', '.join(VIEW_STYLES)}")
        if self.phantom_slices is not None and self.data_dir is not None:
            raise OptionError("phantom_slices and data_dir both say where the slices come from; give one of them")
        self._check_own_data()

    def fold_numbers(self) -> list[int] | None:
        """The folds to cross-validate over, or None for one run.

        Raises:
            OptionError: a fold that does not exist.
        """
        if self.folds is None:
            return None
        words = [word for part in self.folds for word in part.replace(",", " ").split()]
        if words == ["all"]:
            return list(range(5))
        if not words or not set(words) <= set("01234") or len(set(words)) < len(words):
            raise OptionError(f"folds is {' '.join(self.folds)!r}; give all, or some of 0 1 2 3 4, each once")
        return sorted(int(word) for word in words)

    def _check_own_data(self) -> None:
        """Refuse options of the Figshare slices for another set, and the other way round."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        if self.dataset_name is None:
            for name in ("dataset_config_name", "image_column", "label_column", "group_column", "streaming"):
                if (value := getattr(self, name)) != defaults[name]:
                    raise OptionError(f"{name} is {value!r}, but no data set is named; give --dataset_name as well")
            return
        for name in ("data_dir", "phantom_slices", "split"):
            if (value := getattr(self, name)) != defaults[name]:
                raise OptionError(
                    f"dataset_name is {self.dataset_name!r}, but {name} ({value!r}) is for the Figshare slices; leave "
                    f"{name} out, also of the file given as --config"
                )
        if not self.dataset_name.strip():
            raise OptionError("dataset_name is empty; give a Hub name or a folder")
        if self.streaming:
            self._check_stream()

    def _check_stream(self) -> None:
        """Refuse what needs the whole training split at once."""
        if self.stream_buffer < 1:
            raise OptionError(f"stream_buffer is {self.stream_buffer}; at least 1 is needed, which keeps the order")
        reasons = {
            "group_column": "dealing images anew by group needs all of them at once",
            "folds": "folds are dealt from all images at once",
            "fold": "folds are dealt from all images at once",
            "max_train_samples": "a stream's length is not known; max_steps bounds the training",
        }
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, reason in reasons.items():
            if (value := getattr(self, name)) != defaults[name]:
                raise OptionError(
                    f"{name} is {value!r}, but the training split is streamed, and {reason}; leave out {name} "
                    "or streaming"
                )
