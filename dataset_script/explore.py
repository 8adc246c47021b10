"""One page to look at: the Figshare brain tumour slices in a minute.

    python -m dataset_script.explore --data_dir DIR_WITH_THE_ZIPS --out sheet.html

The HTML file stands alone: pictures and charts are inside it, it loads nothing, and it reads in light and dark and on
a phone. It shows samples with the tumour's border, slices per patient, classes per fold, intensities, and how much
each way of splitting the slices leaks, with the test slices that have the closest match among the training slices.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import jinja2
import numpy as np
from PIL import Image

from dataset_script import explore_figures
from dataset_script.split_audit import Slices, SplitAudit, audit_split, read_slices
from hf_kdmri.data.leakage import MAX_DISTANCE, MIN_CORRELATION
from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.splits import FOLDS, missing_slices

TEMPLATE = Path(__file__).with_name("explore_page.html.jinja")
PICTURE_PIXELS = 256
SAMPLES = 2
SAMPLES_WITHOUT_PLANES = 6
PAIRS = 4


@dataclass(frozen=True)
class Picture:
    """A slice on the page.

    Attributes:
        uri: The JPEG as a data URI.
        border: The tumour's outline as SVG points, in pixels of the slice.
        size: Side of the slice in pixels.
        number: Slice number.
        pid: Patient id.
        label: Name of the class.
    """

    uri: str
    border: str
    size: int
    number: int
    pid: str
    label: str


def main() -> None:
    """Parse the command line and write the page."""
    arguments = parse_arguments()
    if arguments.out.suffix.lower() not in (".html", ".htm"):
        raise SystemExit(f"error: --out is {arguments.out}; give a name that ends in .html")
    try:
        page = explore_page(read_slices(arguments.data_dir, arguments.cache_dir), note=arguments.note)
    except ValueError as error:  # what the readers raise for data that cannot be used
        raise SystemExit(f"error: {error}") from error
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    print(f"{arguments.out}: {len(page.encode()) / 1e6:.1f} MB")


def parse_arguments() -> argparse.Namespace:
    """Options of the sheet."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.explore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", type=Path, required=True, help="the published zips, or .mat files at any depth"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("sheet.html"), help="page to write (default: %(default)s)"
    )
    parser.add_argument(
        "--note",
        metavar="TEXT",
        default="",
        help="stands under the title; say here if the pictures are not the published 16-bit originals",
    )
    parser.add_argument(
        "--cache_dir", metavar="DIR", help="where prepared slices are kept (default: the cache of datasets)"
    )
    return parser.parse_args()


def explore_page(slices: Slices, note: str = "") -> str:
    """Render the page.

    Args:
        slices: All slices, see `dataset_script.split_audit.read_slices`.
        note: Stands under the title. Default: nothing.

    Returns:
        HTML that stands alone.

    Raises:
        ValueError: too few patients to split.
    """
    audits = {config: [audit_split(slices, config, fold) for fold in range(FOLDS)] for config in slices.configs}
    pooled = {config: np.concatenate([audit.correct for audit in folds]).mean() for config, folds in audits.items()}
    per_fold = {config: [audit.accuracy for audit in folds] for config, folds in audits.items()}
    columns = {name: slices.dataset[name][:] for name in ("raw_min", "raw_max", "window_low", "window_high")}
    tests = [audit.test for audit in audits["patient_groups"]]
    charts = {
        "patients": explore_figures.slices_per_patient(slices.pids, slices.labels),
        "folds": explore_figures.class_by_fold(slices.labels, slices.groups, tests),
        "ranges": explore_figures.raw_ranges(columns),
        "intensities": explore_figures.intensities(_intensity_histograms(slices), slices.labels),
        "neighbors": explore_figures.neighbor_accuracy(
            per_fold, pooled, np.bincount(slices.labels).max() / len(slices.labels)
        ),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        note=note,
        published="cvind" in slices.configs,
        slices=len(slices.numbers),
        missing=len(missing_slices(slices.pids, slices.numbers)),
        classes=len(set(slices.labels.tolist())),
        pids=len(set(slices.pids)),
        groups=len(set(slices.groups)),
        samples=samples(slices),
        has_planes="plane" in slices.dataset.column_names,
        charts=charts,
        pooled=pooled,
        leaks=[_leak(config, folds) for config, folds in audits.items()],
        pairs={config: nearest_pairs(slices, audits[config]) for config in ("patient_groups", "random_slices")},
        max_distance=MAX_DISTANCE,
        min_correlation=MIN_CORRELATION,
    )


def samples(slices: Slices) -> list[dict[str, Any]]:
    """Choose slices to show: per class and plane, of different patients, tumours of middling size.

    Where the data have no column `plane`, per class alone.

    Returns:
        Per class: its name, its number of slices, and `cells`, each with plane (or None), number of slices, pictures.
    """
    planes: list[str | None] = [None]
    plane_of = np.zeros(len(slices.numbers), int)
    count = SAMPLES_WITHOUT_PLANES
    if "plane" in slices.dataset.column_names:
        planes = list(slices.dataset.features["plane"].names)
        plane_of = np.array(slices.dataset["plane"][:])
        count = SAMPLES
    areas = np.array([_area(border) for border in slices.dataset["tumor_border"][:]])
    rows = []
    for label, name in enumerate(LABEL_NAMES):
        cells = []
        for number, plane in enumerate(planes):
            members = np.flatnonzero((slices.labels == label) & (plane_of == number))
            pictures = [_picture(slices, index) for index in _middling(members, areas, slices.groups, count)]
            cells.append({"plane": plane, "slices": len(members), "pictures": pictures})
        rows.append({"label": name, "slices": int((slices.labels == label).sum()), "cells": cells})
    return rows


def nearest_pairs(slices: Slices, folds: Sequence[SplitAudit], count: int = PAIRS) -> list[dict[str, Any]]:
    """Choose the test slices with the closest match outside the test, over all folds, one per pair of patient groups.

    Returns:
        Per pair: the test slice and its match as pictures, the split of the match (train or validation), their
        correlation, whether they are of one patient group, and whether the leak audit reports them.
    """
    reported = {(pair.index_a, pair.index_b) for audit in folds for pair in audit.near_duplicates}
    test, match, correlation = (
        np.concatenate([getattr(audit, name) for audit in folds]) for name in ("test", "nearest", "correlation")
    )
    match_split = np.concatenate([slices.split(audit.config, audit.fold)[audit.nearest] for audit in folds])
    chosen: list[dict[str, Any]] = []
    shown: set[frozenset[str]] = set()
    for place in np.argsort(-correlation, kind="stable").tolist():
        a, b = int(test[place]), int(match[place])
        groups = frozenset((slices.groups[a], slices.groups[b]))
        if groups in shown:
            continue
        shown.add(groups)
        chosen.append(
            {
                "test": _picture(slices, a),
                "match": _picture(slices, b),
                "match_split": str(match_split[place]),
                "correlation": float(correlation[place]),
                "same_group": len(groups) == 1,
                "reported": (a, b) in reported,
            }
        )
        if len(chosen) == count:
            break
    return chosen


def _leak(config: str, folds: Sequence[SplitAudit]) -> dict[str, Any]:
    return {
        "config": config,
        "shared_groups": [audit.shared_groups for audit in folds],
        "copied": sum(audit.copied_test_slices for audit in folds),
        "tested": sum(len(audit.test) for audit in folds),
    }


def _intensity_histograms(slices: Slices) -> np.ndarray:
    """Count the 8-bit intensities of each slice, (N, 256)."""

    def histogram(cell: dict[str, Any]) -> list[int]:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            return image.convert("L").histogram()

    cells = slices.dataset.cast_column("image", datasets.Image(decode=False))["image"]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return np.array(list(threads.map(histogram, cells)))


def _area(border: Sequence[float]) -> float:
    """Area inside an outline x1, y1, x2, y2, ... in square pixels."""
    x, y = np.reshape(border, (-1, 2)).T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _middling(members: np.ndarray, areas: np.ndarray, groups: Sequence[str], count: int) -> list[int]:
    """The members whose area is nearest to their median, of different patient groups."""
    chosen: dict[str, int] = {}
    if len(members):
        for index in members[np.argsort(abs(areas[members] - np.median(areas[members])), kind="stable")].tolist():
            chosen.setdefault(groups[index], index)
    return list(chosen.values())[:count]


def _picture(slices: Slices, index: int) -> Picture:
    row = slices.dataset[int(index)]
    image = row["image"].convert("L")
    buffer = io.BytesIO()
    small = image.resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=82)
    points = np.reshape(row["tumor_border"], (-1, 2))
    return Picture(
        uri=f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        border=" ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        size=image.width,
        number=row["slice"],
        pid=row["pid"],
        label=LABEL_NAMES[row["label"]],
    )


if __name__ == "__main__":
    main()
