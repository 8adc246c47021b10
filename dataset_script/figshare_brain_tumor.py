"""The Figshare brain tumour data (Cheng 2015) as a `datasets` builder.

Example:
    ```python
    from dataset_script.figshare_brain_tumor import FigshareBrainTumor

    builder = FigshareBrainTumor(config_name="patient_groups", fold=0, data_dir="path/to/the/zips")
    builder.download_and_prepare(num_proc=2)
    splits = builder.as_dataset()  # train, validation, test
    ```
"""

import dataclasses
import difflib
import hashlib
import inspect
import io
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from dataset_script.figshare_download import BASE_URL, check_source, download_published_zips, published_sha256s
from dataset_script.kaggle_download import HANDLE, kaggle_folder
from dataset_script.slice_index import labels_and_pids
from hf_kdmri.data.archives import (
    DataFolderError,
    SliceEntry,
    data_files,
    find_slices,
    find_slices_in_zips,
    read_slices,
)
from hf_kdmri.data.mat_file import LABEL_NAMES, SliceFileError, read_slice
from hf_kdmri.data.pixels import mask_bounding_box, raw_to_uint16, window_to_uint8
from hf_kdmri.data.planes import PLANES, slice_plane
from hf_kdmri.data.splits import (
    PUBLISHED_SLICES,
    SPLITS,
    assign_splits,
    check_config,
    check_fold,
    missing_slices,
    patient_group_of,
)

logger = datasets.utils.logging.get_logger(__name__)

CITATION = """\
@article{cheng2015enhanced,
  title = {Enhanced Performance of Brain Tumor Classification via Tumor Region Augmentation and Partition},
  author = {Cheng, Jun and Huang, Wei and Cao, Shuangliang and Yang, Ru and Yang, Wei and Yun, Zhaoqiang and Wang, \
Zhijian and Feng, Qianjin},
  journal = {PLoS ONE}, volume = {10}, number = {10}, pages = {e0140381}, year = {2015}
}
@article{cheng2016retrieval,
  title = {Retrieval of Brain Tumors by Adaptive Spatial Pooling and Fisher Vector Representation},
  author = {Cheng, Jun and Yang, Wei and Huang, Meiyan and Huang, Wei and Jiang, Jun and Zhou, Yujia and Yang, Ru \
and Zhao, Jie and Feng, Yanqiu and Feng, Qianjin and Chen, Wufan},
  journal = {PLoS ONE}, volume = {11}, number = {6}, pages = {e0157112}, year = {2016}
}
@misc{cheng2017figshare,
  title = {brain tumor dataset}, author = {Cheng, Jun}, publisher = {figshare}, doi = {10.6084/m9.figshare.1512427}
}"""
DESCRIPTION = "3064 T1-weighted contrast-enhanced brain MRI slices of 233 PIDs with one of three tumours."
# zlib's run-length strategy: a fifth of the time of Pillow's defaults for slices, and smaller than its level 1
PNG_OPTIONS = {"compress_level": 1, "compress_type": zlib.Z_RLE}


@dataclass
class FigshareBrainTumorConfig(datasets.BuilderConfig):
    """Which slices are train, validation and test, and how 16 bits become 8.

    Attributes:
        data_dir: Folder with the source files, or None to download them.
        fold: 0-4; which fifth is the test split.
        seed: Orders the slices of `random_slices`; the other configs draw nothing.
        window_percentiles: Percentiles of each slice that become 0 and 255.
        image_bits: 8 for the window of each slice; 16 for the raw intensities, with a column `raw_offset` more.
        source: Where the files come from without `data_dir`: `"figshare"`, or `"kaggle"` (needs kagglehub).
        base_url: A mirror of figshare's files, as `<base_url>/<file id>`.
    """

    data_dir: str | None = None
    fold: int = 0
    seed: int = 0
    window_percentiles: tuple[float, float] = (0.1, 99.9)
    image_bits: int = 8
    source: str = "figshare"
    base_url: str = BASE_URL

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Check the options and name the cache folder by all that changes its content, the source's files included.

        `datasets` sets options after `__init__` and calls this next, so that this is the first place to check them.
        """
        check_config(self.name)
        check_fold(self.fold)
        low_high = _check_window(self.window_percentiles)
        if self.image_bits not in (8, 16):
            raise ValueError(f"image_bits is {self.image_bits!r}; give 8 (windowed pictures) or 16 (raw intensities)")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}; give a whole number")
        check_source(self.source, self.base_url, self.data_dir)
        source: list[Any] = [HANDLE] if self.source == "kaggle" else published_sha256s()  # whatever the mirror
        if self.data_dir is not None:
            self.data_dir = str(Path(self.data_dir).expanduser().resolve())
            source = _fingerprint(self.data_dir)
        features = None if custom_features is None else repr(custom_features)
        seed = self.seed if self.name == "random_slices" else None  # nothing else is drawn
        content = json.dumps([self.fold, seed, low_high, self.image_bits, source, features])
        return f"{self.name}-fold{self.fold}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


class FigshareBrainTumor(datasets.GeneratorBasedBuilder):
    """3064 T1-weighted contrast-enhanced slices of 233 PIDs with meningioma, glioma or pituitary tumour.

    Args:
        config_name: `"patient_groups"` (default), `"cvind"` or `"random_slices"` (leaks), see
            `hf_kdmri.data.splits.assign_splits`.
        fold: 0-4. Default 0.
        data_dir: Folder with the four published zips, the one zip of them, or `.mat` files at any depth, zipped or
            not. Default: download from figshare, or with `source="kaggle"` from Kaggle.
        cache_dir: Where prepared data go. Default: the cache of `datasets`.
        **kwargs: The other fields of `FigshareBrainTumorConfig`, and those of `datasets.DatasetBuilder`.
    """

    VERSION = datasets.Version("2.0.0")  # raise it when the output changes: the cache key has no hash of the code
    BUILDER_CONFIG_CLASS = FigshareBrainTumorConfig
    BUILDER_CONFIGS: ClassVar[list[FigshareBrainTumorConfig]] = [
        FigshareBrainTumorConfig(
            name="patient_groups", version=VERSION, description="No patient group in two splits; the headline."
        ),
        FigshareBrainTumorConfig(
            name="cvind", version=VERSION, description="The authors' folds; divide 15 of 18 groups of repeat scans."
        ),
        FigshareBrainTumorConfig(
            name="random_slices", version=VERSION, description="Slices at random: leaks, only to reproduce reports."
        ),
    ]
    DEFAULT_CONFIG_NAME = "patient_groups"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set up the builder; see the class for the arguments."""
        _refuse_unknown(kwargs)
        super().__init__(*args, **kwargs)
        if self.config.name == "random_slices":
            _warn_of_leak()

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"{DESCRIPTION} {self.config.description}",
            features=_features(self.config.image_bits),
            homepage="https://doi.org/10.6084/m9.figshare.1512427",
            license="CC BY 4.0",
            citation=CITATION,
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        if self.config.data_dir is not None:
            entries = find_slices(self.config.data_dir)
        elif self.config.source == "kaggle":
            entries = find_slices(kaggle_folder(force=dl_manager.download_config.force_download))
        else:
            entries = find_slices_in_zips(download_published_zips(dl_manager, self.config.base_url))
        labels, pids = labels_and_pids(
            entries, cache_dir=Path(self.cache_dir).parents[1], num_proc=dl_manager.download_config.num_proc
        )
        numbers = [entry.number for entry in entries]
        _warn_of_missing(missing_slices(pids, numbers))
        assigned = np.array(assign_splits(pids, labels, numbers, self.config.name, self.config.fold, self.config.seed))
        return [
            datasets.SplitGenerator(
                name=split,  # a list is what `num_proc` shares out
                gen_kwargs={"entries": [entries[i] for i in np.flatnonzero(assigned == split)]},
            )
            for split in SPLITS
        ]

    def _generate_examples(self, entries: list[SliceEntry]) -> Iterator[tuple[int, dict[str, Any]]]:
        for entry, data in read_slices(entries):
            item = read_slice(data, entry.name)
            image, low, high = window_to_uint8(item.image, self.config.window_percentiles)
            row = {
                "image": {"bytes": _png(image), "path": None},
                "label": item.label,
                "pid": item.pid,
                "patient_group": patient_group_of(item.pid),
                "slice": item.number,
                "plane": slice_plane(item.image),
                "height": item.image.shape[0],
                "width": item.image.shape[1],
                "mask": {"bytes": _png(item.mask), "path": None},
                "bounding_box": mask_bounding_box(item.mask),
                "tumor_border": item.border.ravel().tolist(),
                "raw_min": item.raw_min,
                "raw_max": item.raw_max,
                "window_low": low,
                "window_high": high,
            }
            if self.config.image_bits == 16:
                pixels, offset = raw_to_uint16(item.image, entry.name)
                row |= {"image": {"bytes": _png(pixels), "path": None}, "raw_offset": offset}
            yield item.number, row

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # datasets wraps every error in "An error occurred while generating the dataset" and a worker process loses the
        # cause; a file that cannot be used must be named by the error that the user sees
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, (SliceFileError, DataFolderError)):
                raise error.__cause__ from None
            raise


def _features(image_bits: int) -> datasets.Features:
    number = datasets.Value("float32")
    columns = {
        "image": datasets.Image(mode="L" if image_bits == 8 else "I;16"),
        "label": datasets.ClassLabel(names=list(LABEL_NAMES)),
        "pid": datasets.Value("string"),
        "patient_group": datasets.Value("string"),
        "slice": datasets.Value("int32"),
        "plane": datasets.ClassLabel(names=list(PLANES)),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "mask": datasets.Image(mode="L"),
        "bounding_box": datasets.List(datasets.Value("int32"), length=4),
        "tumor_border": datasets.List(number),
        "raw_min": number,
        "raw_max": number,
        "window_low": number,
        "window_high": number,
    }
    if image_bits == 16:
        columns["raw_offset"] = datasets.Value("int32")
    return datasets.Features(columns)


@lru_cache(maxsize=1)  # once per process
def _warn_of_leak() -> None:
    logger.warning(
        "random_slices puts slices of one patient into train and test: it leaks. A 1-nearest-neighbour match of "
        "thumbnails scores 94 % on such a split and 70 % on one by patient. Report results on patient_groups."
    )


def _warn_of_missing(numbers: list[int]) -> None:
    if numbers:
        some = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        logger.warning(
            f"{len(numbers)} of the {PUBLISHED_SLICES} published slices are not there ({some}): results on the others "
            f"cannot be compared with results on all; all four zips are needed"
        )


def _refuse_unknown(options: dict[str, Any]) -> None:
    config = {field.name for field in dataclasses.fields(FigshareBrainTumorConfig)}
    known = config | set(inspect.signature(datasets.DatasetBuilder.__init__).parameters)
    for name in options.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(config))}"
        raise TypeError(f"FigshareBrainTumor has no option {name!r}; {hint}")


def _check_window(percentiles: Any) -> tuple[float, float]:
    try:
        low, high = map(float, percentiles)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 100:
        raise ValueError(f"window_percentiles is {percentiles!r}; give two numbers with 0 <= lower < upper <= 100")
    return low, high


def _fingerprint(data_dir: str) -> list[tuple[str, int, int]]:
    """Name, size and time of every source file: if one changes, cached slices are stale."""
    stats = [(str(path), path.stat()) for path in data_files(data_dir)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **PNG_OPTIONS)
    return buffer.getvalue()
