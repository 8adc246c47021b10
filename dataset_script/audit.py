"""Leak audit: do test images resemble training images so closely that a model can answer from memory?

    python -m dataset_script.audit --data_dir DIR_WITH_THE_ZIPS       the Figshare slices, in each of their splits
    python -m dataset_script.audit --a train_images --b test_images   any two sets of images
    python -m dataset_script.audit --a images                         one set against itself

Near duplicates are pairs whose perceptual hashes and thumbnails agree in one of 8 orientations. For the Figshare
splits, the accuracy of a 1-nearest-neighbour match on 48 x 48 thumbnails is added: how far one gets by remembering
the training and validation slices, without learning anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataset_script.split_audit import SplitAudit, audit_split, read_slices
from hf_kdmri.data.leakage import MAX_DISTANCE, MIN_CORRELATION, ORIENTATIONS, NearDuplicate, near_duplicates
from hf_kdmri.data.pictures import SUFFIXES, find_images
from hf_kdmri.data.splits import CONFIGS, FOLDS


def main() -> None:
    """Parse the command line, audit, print, and write JSON."""
    arguments = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        result = audit_sets(arguments, console) if arguments.a else audit_figshare(arguments, console)
    except ValueError as error:  # what every reader raises for data that cannot be used
        raise SystemExit(f"error: {error}") from error
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options; either the Figshare slices or two sets of images."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s (--data_dir DIR | --a DIR [--b DIR]) [options]",
    )
    what = parser.add_argument_group("what to audit")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_dir", metavar="DIR", type=Path, help="the published zips, or .mat files at any depth")
    source.add_argument("--a", metavar="DIR", type=Path, help="pictures, Parquet files, or a set saved by datasets")
    what.add_argument("--b", metavar="DIR", type=Path, help="what to compare --a with (default: with itself)")
    splits = parser.add_argument_group("with --data_dir")
    splits.add_argument("--config", nargs="+", choices=CONFIGS, help="(default: all three)")
    splits.add_argument("--fold", nargs="+", type=int, choices=range(FOLDS), help="(default: all five)")
    splits.add_argument("--cache_dir", metavar="DIR", help="of prepared slices (default: the cache of datasets)")
    limits = parser.add_argument_group("what counts as a near duplicate")
    limits.add_argument(
        "--max_distance", metavar="BITS", type=int, default=MAX_DISTANCE, help="of 64 (default: %(default)s)"
    )
    limits.add_argument(
        "--min_correlation", metavar="R", type=float, default=MIN_CORRELATION, help="-1 to 1 (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--show", metavar="N", type=int, default=10, help="pairs to list (default: %(default)s)")
    output.add_argument("--json", metavar="FILE", type=Path, help="also write everything found, with all pairs")
    arguments = parser.parse_args()
    if arguments.b and not arguments.a:
        parser.error("--b needs --a: give two sets of images, or --data_dir alone")
    if arguments.a and (arguments.config or arguments.fold):
        parser.error("--config and --fold are of the Figshare slices: give them with --data_dir")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    arguments.fold = arguments.fold or list(range(FOLDS))
    return arguments


def audit_figshare(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Audit the configs asked for, print a table and the pairs of each, and return what JSON holds."""
    limits = {"max_distance": arguments.max_distance, "min_correlation": arguments.min_correlation}
    slices = read_slices(arguments.data_dir, arguments.cache_dir)
    configs = arguments.config or slices.configs
    if not arguments.config and "cvind" not in configs:
        console.print("Not all of these are published patients, so there are no authors' folds (cvind) to audit.")
    audits = [audit_split(slices, config, fold, **limits) for config in configs for fold in arguments.fold]
    names = [f"{number} (PID {pid})" for number, pid in zip(slices.numbers, slices.pids, strict=True)]
    results = [_as_json(audit, names) for audit in audits]
    _print_splits(console, results, len(names))
    for config in configs:
        pairs = [pair for result in results if result["config"] == config for pair in result["near_duplicates"]]
        folds = ", ".join(map(str, arguments.fold))
        pairs.sort(key=lambda pair: -pair["correlation"])
        _print_pairs(console, pairs, f"{config}, fold {folds}", arguments.show)
    return {**limits, "splits": results}


def audit_sets(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare two sets of images, or one with itself, print the pairs, and return what JSON holds."""
    limits = {"max_distance": arguments.max_distance, "min_correlation": arguments.min_correlation}
    names_a, images_a = read_image_set(arguments.a)
    names_b, images_b = (names_a, None) if arguments.b is None else read_image_set(arguments.b)
    rows = [_row(pair, names_a, names_b) for pair in near_duplicates(images_a, images_b, **limits)]
    against = "itself" if arguments.b is None else f"{arguments.b} ({len(names_b)} images)"
    _print_pairs(console, rows, f"{arguments.a} ({len(names_a)} images) against {against}", arguments.show)
    return {**limits, "images_a": len(names_a), "images_b": len(names_b), "near_duplicates": rows}


def read_image_set(path: str | Path) -> tuple[list[str], Sequence[Any]]:
    """Find the images of a folder, at any depth, or of a data set stored in one.

    Args:
        path: Folder of pictures, of Parquet files with a column `image`, or of `datasets`' `save_to_disk`.

    Returns:
        A name per image, and the images in a form that `hf_kdmri.data.leakage.thumbnails` takes.

    Raises:
        ValueError: no such folder, no images in it, or a data set without a column `image`.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; give one with pictures, Parquet files, or a saved set")
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        return _image_column(saved if isinstance(saved, datasets.DatasetDict) else {"row": saved}, folder)
    if parquet := sorted(map(str, folder.rglob("*.parquet"))):
        return _image_column({"row": datasets.Dataset.from_parquet(parquet)}, folder)
    files = list(find_images(folder))
    if not files:
        raise ValueError(
            f"{folder}: holds no images; expected Parquet files or pictures ({', '.join(sorted(SUFFIXES))})"
        )
    return [str(file.relative_to(folder)) for file in files], files


def _image_column(splits: dict[str, Any], folder: Path) -> tuple[list[str], Sequence[Any]]:
    for part in splits.values():
        if "image" not in part.column_names:
            raise ValueError(f"{folder}: has the columns {', '.join(part.column_names)}; rename the images' to image")
    parts = [part.select_columns(["image"]) for part in splits.values()]
    pooled = datasets.concatenate_datasets(parts).cast_column("image", datasets.Image(decode=False))
    return [f"{name} {row}" for name, part in splits.items() for row in range(len(part))], pooled["image"]


def _as_json(audit: SplitAudit, names: Sequence[str]) -> dict[str, Any]:
    return {
        "config": audit.config,
        "fold": audit.fold,
        "train_slices": len(audit.train),
        "test_slices": len(audit.test),
        "shared_groups": audit.shared_groups,
        "copied_test_slices": audit.copied_test_slices,
        "nearest_neighbor_accuracy": audit.accuracy,
        "near_duplicates": [_row(pair, names, names) for pair in audit.near_duplicates],
    }


def _row(pair: NearDuplicate, names_a: Sequence[str], names_b: Sequence[str]) -> dict[str, Any]:
    return {
        "a": names_a[pair.index_a],
        "b": names_b[pair.index_b],
        "correlation": round(pair.correlation, 4),
        "distance": pair.distance,
        "b_is": ORIENTATIONS[pair.orientation],
    }


def _print_splits(console: Console, results: list[dict[str, Any]], slices: int) -> None:
    table = Table(
        title=Text(f"{slices} slices: the test (a) against train and validation (b)"),
        title_justify="left",
        caption="1-NN accuracy: each test slice gets the class of the most similar thumbnail outside the test.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("config", no_wrap=True)
    headings = ("fold", "train+val\nslices", "test\nslices", "groups on\nboth sides", "near dupli-\ncate pairs")
    for heading in (*headings, "test slices\nin a pair", "1-NN\naccuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        counts = (row["fold"], row["train_slices"], row["test_slices"], row["shared_groups"])
        share = f"{row['copied_test_slices'] / row['test_slices']:.1%}"
        accuracy = f"{row['nearest_neighbor_accuracy']:.1%}"
        table.add_row(row["config"], *map(str, counts), str(len(row["near_duplicates"])), share, accuracy)
    console.print(table)
    for config in dict.fromkeys(row["config"] for row in results):
        folds = [row for row in results if row["config"] == config]
        tested = sum(row["test_slices"] for row in folds)
        right = sum(row["test_slices"] * row["nearest_neighbor_accuracy"] for row in folds) / tested
        copied = sum(row["copied_test_slices"] for row in folds)
        console.print(f"{config}, {len(folds)} folds: 1-NN {right:.1%}, {copied} of {tested} test slices in a pair")
    console.print()


def _print_pairs(console: Console, rows: list[dict[str, Any]], title: str, show: int) -> None:
    if not rows:
        console.print(Text(f"{title}: no near duplicates\n"))
        return
    shown = f", the {show} most suspicious" if show < len(rows) else ""
    table = Table(title=Text(f"{title}: {len(rows)} pairs{shown}"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading, justify in (("a", "left"), ("b", "left"), ("correlation", "right"), ("bits apart", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("b is")
    for row in rows[:show]:
        cells = (row["a"], row["b"], f"{row['correlation']:.3f}", str(row["distance"]), row["b_is"])
        table.add_row(*map(Text, cells))  # Text, so that a name with [brackets] is no markup
    console.print(table)


if __name__ == "__main__":
    main()
