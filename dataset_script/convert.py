"""Write the Figshare brain tumour data as a folder of Parquet files that `load_dataset` reads without this package.

    python -m dataset_script.convert --data_dir DIR_WITH_THE_ZIPS --out FOLDER
    python -m dataset_script.convert --data_dir DIR_WITH_THE_ZIPS --out FOLDER --push_to_hub USER/NAME

Without --data_dir the zips are downloaded. The same command run again goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from dataset_script.dataset_card import DatasetCardFacts, dataset_card
from dataset_script.figshare_brain_tumor import FigshareBrainTumor, FigshareBrainTumorConfig
from dataset_script.http_download import DownloadError
from dataset_script.parquet_files import ConversionFolder, WrittenShard, explain_os_error, write_shard
from dataset_script.parquet_layout import Shard, find_places, hub_config_name, plan_shards
from dataset_script.parquet_push import EXAMPLE, push_dataset
from dataset_script.slice_index import labels_and_pids
from hf_kdmri.data.phantom import MARKER
from hf_kdmri.data.splits import CONFIGS, FOLDS, missing_slices
from hf_kdmri.hub.hub_errors import PublishError, check_login, check_repo_id
from hf_kdmri.hub.publish import Push
from hf_kdmri.wording import counted

_FORWARDED = ("image_bits", "source", "base_url")  # options of the builder
# fields of the builder's configuration that do not change a row
_NOT_CONTENT = ("name", "version", "data_dir", "data_files", "description", "fold", "seed", "source", "base_url")


@dataclass(frozen=True)
class Source:
    """All slices of a builder, and what its `_generate_examples` takes to give some of them.

    Attributes:
        entries: Where each slice lies, by slice number.
        labels: Class index of each.
        pids: Patient id of each.
        other_kwargs: Further arguments of `_generate_examples`.
    """

    entries: list[Any]
    labels: list[int]
    pids: list[str]
    other_kwargs: dict[str, Any]

    def kwargs_of(self, shard: Shard) -> dict[str, Any]:
        """Return the arguments for the slices of a shard."""
        return {**self.other_kwargs, "entries": [self.entries[row] for row in shard.rows]}


def find_source(builder: FigshareBrainTumor, num_proc: int = 1) -> Source:
    """Find, and if need be download, the slices of a builder."""
    download = datasets.DownloadConfig(cache_dir=builder._cache_downloaded_dir, num_proc=num_proc)
    manager = datasets.DownloadManager(
        dataset_name=builder.dataset_name,
        data_dir=builder.config.data_dir,
        download_config=download,
        record_checksums=False,
    )
    arguments = [split.gen_kwargs for split in builder._split_generators(manager)]
    entries = sorted((entry for kwargs in arguments for entry in kwargs["entries"]), key=lambda entry: entry.number)
    labels, pids = labels_and_pids(entries, cache_dir=Path(builder.cache_dir).parents[1], num_proc=num_proc)
    other = {name: value for name, value in arguments[0].items() if name != "entries"}
    return Source(entries, labels, pids, other)


def convert(
    builder: FigshareBrainTumor,
    out: str | Path,
    *,
    configs: Sequence[str] | None = None,
    num_proc: int = 1,
    overwrite: bool = False,
    note: str = "",
    repo_id: str | None = None,
) -> ConversionFolder:
    """Write the folder, or what is missing of it.

    Args:
        builder: Gives columns and rows; its own configuration and fold do not matter.
        out: The folder.
        configs: Any of `patient_groups`, `cvind`, `random_slices`. Default: the first and, where patients are the
            published ones, the second.
        num_proc: Processes that write. Default 1.
        overwrite: Replace a conversion with other options, or write beside other files.
        note: Shown first in the card.
        repo_id: `user/name` for the card's examples.

    Returns:
        The finished folder.

    Raises:
        ValueError: a configuration that these slices do not have, a damaged source, or a folder with other files.
        OSError: the disk is full or not writable.
    """
    folder = ConversionFolder(out)
    with folder.locked():
        source = find_source(builder, num_proc)
        numbers = [entry.number for entry in source.entries]
        places: dict[str, list[str]] = {}
        omitted = ""
        for config in configs or ("patient_groups", "cvind"):
            try:
                places |= find_places(source.pids, source.labels, numbers, [config])
            except ValueError as error:
                if configs is not None or config != "cvind":
                    raise
                omitted = str(error).split(" (")[0].split("; ")[0]  # the card lists no patient ids
                print(f"convert: without the configuration cvind: {omitted}", flush=True)
        shards = plan_shards(places)
        options = _content_options(builder, source, shards, list(places))
        missing = folder.resume(options, shards, overwrite=overwrite)
        to_write = sum(len(shard.rows) for shard in missing)
        with datasets.utils.tqdm(total=to_write, desc="Writing Parquet", unit=" slices") as progress:
            for shard, written in _write_all(builder, source, folder.data, missing, num_proc):
                folder.record(shard.name, written)
                progress.update(written.rows)
        facts = DatasetCardFacts(
            info=builder.info,
            image_bits=builder.config.image_bits,
            places=places,
            labels=source.labels,
            pids=source.pids,
            files={name: shard.bytes for name, shard in folder.shards.items()},
            generated=builder.config.data_dir is not None and (Path(builder.config.data_dir) / MARKER).exists(),
            omitted=omitted,
            missing=len(missing_slices(source.pids, numbers)),
            note=note,
            repo_id=repo_id,
        )
        folder.finish(dataset_card(facts))
    return folder


def _content_options(
    builder: FigshareBrainTumor, source: Source, shards: Sequence[Shard], configs: Sequence[str]
) -> dict[str, Any]:
    """All that the bytes of the shards depend on, as JSON values."""
    fields = [field.name for field in dataclasses.fields(builder.config) if field.name not in _NOT_CONTENT]
    stats = {path: os.stat(path) for path in {entry.path for entry in source.entries}}
    files = sorted((Path(path).name, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items())
    layout = [(shard.name, [source.entries[row].number for row in shard.rows]) for shard in shards]
    options = {
        "builder": f"{type(builder).__name__} {builder.VERSION}",
        "configs": configs,
        **{name: getattr(builder.config, name) for name in fields},
        "columns": list(builder.info.features),
        "types of columns (sha256)": _digest(builder.info.features.to_dict()),
        "source files (sha256 of names, sizes, times)": _digest(files),
        "slices of shards (sha256)": _digest(layout),
    }
    return json.loads(json.dumps(options))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _write_all(
    builder: FigshareBrainTumor, source: Source, folder: Path, shards: Sequence[Shard], num_proc: int
) -> Iterator[tuple[Shard, WrittenShard]]:
    if min(num_proc, len(shards)) <= 1:
        for shard in shards:
            yield shard, _write_one(builder, source.kwargs_of(shard), folder / shard.name)
        return
    pool = ProcessPoolExecutor(
        min(num_proc, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_start_worker,
        initargs=(builder,),
    )
    try:
        tasks = {
            pool.submit(_write_in_worker, source.kwargs_of(shard), folder / shard.name): shard
            for shard in sorted(shards, key=lambda shard: -len(shard.rows))  # no long one at the end
        }
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_one(builder: FigshareBrainTumor, kwargs: dict[str, Any], path: Path) -> WrittenShard:
    return write_shard(path, builder.info.features, lambda: builder._generate_examples(**kwargs))


_worker: dict[str, FigshareBrainTumor] = {}


def _start_worker(builder: FigshareBrainTumor) -> None:
    _worker["builder"] = builder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody is left to take the shard


def _write_in_worker(kwargs: dict[str, Any], path: Path) -> WrittenShard:
    return _write_one(_worker["builder"], kwargs, path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write; may be an interrupted conversion")
    parser.add_argument("--data_dir", help="the published zips, or .mat files, at any depth. Default: download")
    parser.add_argument("--cache_dir", help="for downloads and the index of labels. Default: the cache of datasets")
    parser.add_argument(
        "--configs",
        nargs="+",
        choices=CONFIGS,
        help="Default: patient_groups and, for published patients, cvind. random_slices leaks, and is a second copy "
        "of the images",
    )
    parser.add_argument("--num_proc", type=int, default=1, help="processes that write. Default: 1")
    parser.add_argument("--overwrite", action="store_true", help="replace a conversion with other options")
    parser.add_argument("--note", default="", help="shown first in the card, e.g. that images were re-encoded")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="upload the folder as a dataset")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="with --push_to_hub: list what would be uploaded")
    parser.add_argument("--tag", metavar="NAME", help="with --push_to_hub: tag the commit as a release, e.g. v1.0")
    defaults = {field.name: field.default for field in dataclasses.fields(FigshareBrainTumorConfig)}
    for name in _FORWARDED:
        kind = type(defaults[name])
        parser.add_argument(
            f"--{name}", type=kind, default=defaults[name], help=f"as the builder. Default: {defaults[name]}"
        )
    options = parser.parse_args(arguments)
    if options.num_proc < 1:
        parser.error(f"--num_proc is {options.num_proc}; give 1 or more")
    if (options.private or options.dry_run or options.tag) and not options.push_to_hub:
        parser.error("--private, --dry_run and --tag belong to --push_to_hub")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, and upload if asked; what a user can mend ends in one line."""
    options = _parse(arguments)
    try:
        if options.push_to_hub:
            check_repo_id(options.push_to_hub, EXAMPLE)
            if not options.dry_run:
                check_login(f"push to {options.push_to_hub}")
        builder = FigshareBrainTumor(
            data_dir=options.data_dir,
            cache_dir=options.cache_dir,
            **{name: getattr(options, name) for name in _FORWARDED},
        )
        folder = convert(
            builder,
            options.out,
            configs=options.configs,
            num_proc=options.num_proc,
            overwrite=options.overwrite,
            note=options.note,
            repo_id=options.push_to_hub,
        )
        _print_outcome(folder)
        if options.push_to_hub:
            print_push(
                push_dataset(
                    folder, options.push_to_hub, private=options.private, dry_run=options.dry_run, tag=options.tag
                )
            )
    except BrokenProcessPool:
        sys.exit(
            "convert: error: a process was killed, perhaps for lack of memory; run again with a smaller --num_proc"
        )
    except KeyboardInterrupt:
        sys.exit("convert: interrupted; run the same command again to go on")
    except (ValueError, DownloadError, PublishError) as error:
        sys.exit(f"convert: error: {error}")
    except OSError as error:
        sys.exit(f"convert: error: {explain_os_error(error, options.out)}")


def print_push(push: Push) -> None:
    """What was sent or, in a dry run, would be."""
    if push.url is None:
        for name, size in push.files:
            print(f"{size:>12,}  {name}")
        print(
            f"Dry run: {counted(len(push.files), 'file')}, {push.total_bytes / 1e6:.1f} MB for {push.repo_id}; "
            "nothing sent"
        )
    elif not push.sent:
        print(f"All {len(push.files)} files are there already: {push.url}")
    else:
        print(f"Uploaded: {push.url} ({len(push.sent)} of {len(push.files)} files sent, the others were there)")


def _print_outcome(folder: ConversionFolder) -> None:
    """Shards, rows and size of each configuration, and the line that loads the first."""
    configs: list[str] = folder.options["configs"]
    print(f"{'configuration':<16}{'shards':>8}{'rows':>8}{'MB':>9}   folds")
    for config in configs:
        shards = [shard for name, shard in folder.shards.items() if f"{config}-" in name]
        size = sum(shard.bytes for shard in shards) / 1e6
        names = f"{hub_config_name(config, 0)}, {hub_config_name(config, 1)} … {hub_config_name(config, FOLDS - 1)}"
        print(f"{config:<16}{len(shards):>8}{sum(shard.rows for shard in shards):>8}{size:>9.1f}   {names}")
    total = sum(shard.bytes for shard in folder.shards.values()) / 1e6
    print(f"{folder.out}: {counted(len(folder.shards), 'file')}, {total:.1f} MB (configurations may share files)\n")
    print(f"from datasets import load_dataset\nload_dataset({str(folder.out)!r}, {configs[0]!r})")


if __name__ == "__main__":
    main()
