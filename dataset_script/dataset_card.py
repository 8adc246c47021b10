"""The dataset card: YAML that `load_dataset` reads, and a page that says what the data are and what leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_script.parquet_files import CARD_MARK
from dataset_script.parquet_layout import DATA, LETTERS, card_configs, hub_config_name, split_glob
from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.splits import FOLDS, SPLITS, patient_group_of, published_patients

TEMPLATE = Path(__file__).with_name("dataset_card.md")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_IMAGE = {
    8: "8-bit grey PNG, upright: raw intensities, linear from `window_low` to `window_high`, clipped outside them",
    16: "16-bit grey PNG, upright: raw intensities without loss, less `raw_offset`; window them before looking at them",
}
_WHAT = {
    "label": "the tumour; go by name, mirrors of these data number them otherwise",
    "pid": "patient id",
    "patient_group": "patient id without its letter suffix: what must not be in two splits",
    "slice": "the `<n>` of the source file `<n>.mat`",
    "plane": "told from the picture by a small classifier: the files do not say it",
    "height": "rows, in pixels",
    "width": "columns, in pixels",
    "mask": "8-bit PNG, 255 inside the tumour",
    "bounding_box": "of the tumour, COCO's form: x, y of the top left corner, width, height, in pixels",
    "tumor_border": "outline as x1, y1, x2, y2, … in pixels",
    "raw_min": "smallest raw intensity, in the scanner's units",
    "raw_max": "largest raw intensity, in the scanner's units",
    "window_low": "raw intensity that an 8-bit picture shows as 0",
    "window_high": "raw intensity that an 8-bit picture shows as 255",
    "raw_offset": "to be added to the pixels for the raw intensities",
}


@dataclass(frozen=True)
class DatasetCardFacts:
    """What the card tells.

    Attributes:
        info: The builder's: features, citation, homepage.
        image_bits: Of the column `image`, 8 or 16.
        places: For each configuration, the letters of every slice, see `parquet_layout`.
        labels: Class index of each slice.
        pids: Patient id of each slice.
        files: Size in bytes of each shard, by its name.
        generated: The slices are phantoms.
        omitted: Why there is no `cvind`, or nothing.
        missing: How many of the published slices are not there.
        note: Markdown that is shown first, for instance that the images were re-encoded.
        repo_id: `user/name` on the Hub; without it, the examples show a stand-in.
    """

    info: datasets.DatasetInfo
    image_bits: int
    places: Mapping[str, Sequence[str]]
    labels: Sequence[int]
    pids: Sequence[str]
    files: Mapping[str, int]
    generated: bool = False
    omitted: str = ""
    missing: int = 0
    note: str = ""
    repo_id: str | None = None

    @property
    def published(self) -> bool:
        """All slices are of published patients, as the committed table has them."""
        known = published_patients()
        return not self.generated and all(
            pid in known and known[pid].label == label for pid, label in zip(self.pids, self.labels, strict=True)
        )


def dataset_card(facts: DatasetCardFacts) -> str:
    """Return the text of `README.md`: YAML with configurations, splits and their sizes, then the page."""
    classes, total = Counter(facts.labels), sum(facts.files.values())
    rows = _counts(facts)
    if facts.generated:
        pretty_name, kind = "Generated brain tumour phantoms", "generated slices"
    elif facts.published:
        pretty_name, kind = "Figshare brain tumour MRI", "T1-weighted contrast-enhanced brain MRI slices"
    else:
        pretty_name, kind = "Brain tumour slices in the layout of the Figshare data", "slices"
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name=pretty_name,
            license="cc-by-4.0" if facts.published else None,  # what other data allow is not ours to say
            task_categories=["image-classification", "image-segmentation"],
            size_categories=next((name for size, name in _SIZES if len(facts.labels) < size), "n>100K"),
            tags=["medical", "mri", "brain-tumor", *(["generated-phantoms"] if facts.generated else [])],
            configs=card_configs(facts.places),
            dataset_info=_sizes(rows),
        ),
        template_path=str(TEMPLATE),
        mark=CARD_MARK,
        pretty_name=pretty_name,
        kind=kind,
        generated=facts.generated,
        published=facts.published,
        missing=facts.missing,
        note=" ".join(facts.note.split()),
        slices=len(facts.labels),
        pids=len(set(facts.pids)),
        patient_groups=len({patient_group_of(pid) for pid in facts.pids}),
        class_counts=", ".join(f"{classes[label]} {name}" for label, name in enumerate(LABEL_NAMES)),
        classes=LABEL_NAMES,
        homepage=facts.info.homepage,
        citation=facts.info.citation,
        repo=facts.repo_id or "path/to/this/folder",
        first_config=next(iter(facts.places)),
        columns=[
            {"name": name, "type": _type_of(feature), "what": describe_column(name, facts.image_bits)}
            for name, feature in facts.info.features.items()
        ],
        configs=list(facts.places),
        omitted=facts.omitted,
        counts=rows,
        shards=len(facts.files),
        megabytes=f"{total / 1e6:.0f}" if total >= 1e7 else f"{total / 1e6:.1f}",
        image_bits=facts.image_bits,
    )
    return f"{str(card).rstrip()}\n"


def describe_column(name: str, image_bits: int) -> str:
    """Return what the card says of a column; nothing if it does not know it."""
    return _IMAGE[image_bits] if name == "image" else _WHAT.get(name, "")


def _counts(facts: DatasetCardFacts) -> list[dict[str, Any]]:
    """One row per configuration, fold and split."""
    rows = []
    groups = [patient_group_of(pid) for pid in facts.pids]
    for config, places in facts.places.items():
        for fold in range(FOLDS):
            for split in SPLITS:
                glob = split_glob(config, fold, split)
                members = [i for i, letters in enumerate(places) if letters[fold] == LETTERS[split]]
                per_class = Counter(facts.labels[i] for i in members)
                rows.append(
                    {
                        "config": hub_config_name(config, fold),
                        "split": split,
                        "per_class": [per_class[label] for label in range(len(LABEL_NAMES))],
                        "slices": len(members),
                        "bytes": sum(size for name, size in facts.files.items() if fnmatchcase(f"{DATA}/{name}", glob)),
                        "groups": len({groups[i] for i in members}),
                    }
                )
    return rows


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The card's `dataset_info`: with it, `load_dataset` notices that a shard is missing."""
    sizes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        size = {"name": row["split"], "num_bytes": row["bytes"], "num_examples": row["slices"]}
        sizes.setdefault(row["config"], []).append(size)
    return [{"config_name": name, "splits": splits} for name, splits in sizes.items()]


def _type_of(feature: Any) -> str:
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return ", ".join(f"{index} `{name}`" for index, name in enumerate(feature.names))
    if isinstance(feature, datasets.List):
        count = "list of" if feature.length == -1 else f"{feature.length} ×"
        return f"{count} {_type_of(feature.feature)}"
    return str(getattr(feature, "dtype", feature))
