"""The images that an export calibrates, measures and compares on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class FileImages:
    """Image files, read one at a time, with their classes where these are known."""

    paths: Sequence[Path]
    labels: Sequence[int] = ()

    def __iter__(self) -> Iterator[Image.Image]:
        """Read each as predict does; a broken file ends it, named."""
        from hf_kdmri.data.pictures import PictureError
        from hf_kdmri.inference import read_image

        for path in self.paths:
            try:
                yield read_image(path)
            except PictureError as error:
                raise PictureError(f"{path} {error}") from error


@dataclass(frozen=True)
class SplitImages:
    """Rows of a split of the slices."""

    split: datasets.Dataset

    def __iter__(self) -> Iterator[Image.Image]:
        """Decode each."""
        from hf_kdmri.data.pictures import to_8_bit

        for row in self.split.select_columns(["image"]):
            yield to_8_bit(row["image"]).convert("RGB")

    @property
    def labels(self) -> Sequence[int]:
        """Index of each row's class."""
        return self.split["label"][:]


@dataclass(frozen=True)
class ExportImages:
    """What an export is given.

    Args:
        training: to calibrate on; None where there are none.
        labelled: to measure accuracy on; None where there are none.
        source: what the training images are, in a few words.
    """

    training: FileImages | SplitImages | None
    labelled: FileImages | SplitImages | None
    source: str

    def some(self, count: int) -> list[Image.Image]:
        """The first images there are, to compare logits on."""
        return [image for image, _ in zip(self.training or self.labelled or (), range(count), strict=False)]

    def pairs(self) -> Iterator[tuple[Image.Image, int]]:
        """Labelled images with their classes."""
        if self.labelled is not None:
            yield from zip(self.labelled, self.labelled.labels, strict=True)


def find_export_images(
    labels: Sequence[str],
    *,
    calibration: Path | None,
    count: int,
    data_dir: Path | None,
    cache_dir: Path | None,
    fold: int,
    label_file: Path | None,
    images: Path | None,
) -> ExportImages:
    """Find what the options name.

    Args:
        labels: the model's classes, in order.
        calibration: a folder of training images.
        count: of training images, drawn with seed 0.
        data_dir: the published slices: calibrates on the fold's training slices, measures on its validation slices.
        cache_dir: where the prepared slices are kept.
        fold: 0 to 4.
        label_file: CSV with columns file and label.
        images: folder that its files lie in.

    Raises:
        ValueError: options that exclude or need each other, no images, or labels that the model does not know.
        OSError: nothing there.
    """
    from hf_kdmri.data.label_file import read_label_file
    from hf_kdmri.data.pictures import find_images

    if calibration is not None and data_dir is not None:
        raise ValueError("--calibration and --data-dir both name training images; give one of them")
    if (label_file is None) != (images is None):
        raise ValueError("--labels and --images belong together: a CSV, and the folder that its files lie in")
    training: FileImages | SplitImages | None = None
    labelled: FileImages | SplitImages | None = None
    source = ""
    if calibration is not None:
        training = FileImages(_draw(list(find_images(calibration)), count))
        if not training.paths:
            raise ValueError(f"{calibration} holds no images")
        source = f"folder {calibration.resolve().name}"
    elif data_dir is not None:
        from hf_kdmri.data.loading import load_slices

        splits = load_slices(data_dir=data_dir, cache_dir=cache_dir, fold=fold, max_train_samples=count)
        names = splits["train"].features["label"].names
        if names != list(labels):
            raise ValueError(f"the model's classes are {', '.join(labels)}; those of the slices {', '.join(names)}")
        training, labelled = SplitImages(splits["train"]), SplitImages(splits["validation"])
        source = f"Figshare slices, training split of fold {fold}"
    if label_file is not None and images is not None:
        rows = read_label_file(label_file, images, labels).rows
        labelled = FileImages([row.path for row in rows], [row.label for row in rows])
    return ExportImages(training, labelled, source)


def _draw(paths: list[Path], count: int) -> list[Path]:
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [paths[index] for index in sorted(chosen)]
