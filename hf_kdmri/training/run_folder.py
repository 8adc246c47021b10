"""The folder of one run: what is finished in it, and whether it belongs to this configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_kdmri.models import TimmClassifier
from hf_kdmri.training.options import OptionError, RunOptions, default_options, write_config
from hf_kdmri.whole_files import sync_folder, sync_tree, write_whole

# Where things lie, who is told, how many processes read and what else is tested does not change what is trained.
_PLACES = {"output_dir", "overwrite_output_dir", "data_dir", "cache_dir", "preprocessing_num_workers"}
_PLACES |= {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "report_to", "run_name", "disable_tqdm"}
_PLACES |= {"folds", "saliency", "robustness_images"}
_PLACES |= {"save_total_limit", "loss_spike_factor", "logging_nan_inf_filter"}
_PLACES |= {"dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor"}


@dataclass
class RunFolder:
    """A run's files: `teacher/`, `baseline/`, `student/`, `checkpoints/`, `figures/`, `history.jsonl`, `metrics.json`.

    A model folder is written under another name and renamed when whole, so one that exists is finished. A run over
    several folds has one such folder for each, `fold-0/` and so on, and what is pooled over them.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def metrics_file(self) -> Path:
        """`metrics.json`, written last: a run that has it is finished."""
        return self.path / "metrics.json"

    @property
    def history_file(self) -> Path:
        """`history.jsonl`: one JSON object per log, with its stage."""
        return self.path / "history.jsonl"

    def predictions_file(self, split: str) -> Path:
        """`predictions.parquet` of the test images, `validation_predictions.parquet` of those of validation."""
        return self.path / ("predictions.parquet" if split == "test" else f"{split}_predictions.parquet")

    @property
    def saliency_file(self) -> Path:
        """`saliency.json`: scores of every test image's Grad-CAM, by model."""
        return self.path / "saliency.json"

    @property
    def robustness_file(self) -> Path:
        """`robustness.json`: accuracy under corruptions, by model."""
        return self.path / "robustness.json"

    @property
    def environment_file(self) -> Path:
        """`environment.json`: versions, code, hardware and command of every launch, and checksums of the data."""
        return self.path / "environment.json"

    def add_launch(self, environment: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> None:
        """Note in `environment.json` that a process took up this run.

        Args:
            environment: as `hf_kdmri.training.environment.describe_environment` gives it.
            data: checksums of the splits, as `data_fingerprint` gives them.
        """
        told = self.read_environment() or {"format": 1, "launches": []}
        told["launches"].append(environment)
        if data is not None:
            told["data"] = data
        write_whole(self.environment_file, json.dumps(told, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any] | None:
        """`environment.json`, or None where an older version made the run."""
        return self.read_json(self.environment_file)

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """A JSON file of this run, or None where it was not made."""
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def fold(self, number: int) -> RunFolder:
        """The folder of one fold of a run over several."""
        return RunFolder(self.path / f"fold-{number}")

    @property
    def folds(self) -> list[int]:
        """The folds that a run over several has a folder for."""
        found = [path.name.removeprefix("fold-") for path in self.path.glob("fold-*") if path.is_dir()]
        return sorted(int(number) for number in found if number.isdigit())

    def open(self, options: RunOptions) -> None:
        """Make the folder ready; an earlier run of the same configuration is continued.

        Args:
            options: of the run to come.

        Raises:
            OptionError: the folder holds something else, or a run with other options (the difference is shown).
        """
        config = self.path / "config.yaml"
        if config.is_file() and options.data.overwrite_output_dir:
            shutil.rmtree(self.path)
        if config.is_file():
            self._refuse_other_options(config, options)
        elif self.path.is_dir() and any(not path.name.endswith(".tmp") for path in self.path.iterdir()):
            raise OptionError(f"{self.path} is not empty and holds no run; choose another --output_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        write_config(options, config)  # first: a folder with anything else and no configuration is no run
        (self.path / "figures").mkdir(exist_ok=True)

    def _refuse_other_options(self, config: Path, options: RunOptions) -> None:
        # an option that an older version did not write was at its default then
        before = {**default_options(), **(yaml.safe_load(config.read_text(encoding="utf-8")) or {})}
        now = options.as_dict()
        if (before.get("folds") is None) != (now.get("folds") is None):
            kind = "one run" if before.get("folds") is None else "a run over several folds"
            raise OptionError(f"{self.path} holds {kind}, and --folds says otherwise; choose another --output_dir")
        changed = [
            f"  {key}: {before.get(key, 'default')} there, {now.get(key, 'default')} now"
            for key in sorted((before.keys() | now.keys()) - _PLACES)
            if before.get(key, "default") != now.get(key, "default")
        ]
        if changed:
            difference = "\n".join(changed)
            raise OptionError(
                f"{self.path} holds a run with other options:\n{difference}\n"
                "choose another --output_dir, or delete that run with --overwrite_output_dir"
            )

    def model_folder(self, stage: str) -> Path:
        """Where the finished model of a stage ("teacher", "baseline" or "student") lies."""
        return self.path / stage

    def has_model(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return (self.model_folder(stage) / "config.json").is_file()

    def save_model(self, stage: str, model: TimmClassifier) -> Path:
        """Write a stage's finished model under another name, then rename it."""
        folder = self.model_folder(stage)
        unfinished = folder.with_name(f".{stage}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        sync_tree(unfinished)
        os.replace(unfinished, folder)
        sync_folder(self.path)
        return folder

    def checkpoints(self, stage: str) -> Path:
        """Where the trainer of a stage keeps its checkpoints."""
        return self.path / "checkpoints" / stage

    def write_history(self, stage: str, log_history: Iterable[Mapping[str, Any]]) -> None:
        """Replace one stage's lines in `history.jsonl`."""
        lines = [row for row in self.read_history() if row["stage"] != stage]
        lines += [{"stage": stage, **row} for row in log_history]
        write_whole(self.history_file, "".join(json.dumps(line) + "\n" for line in lines))

    def read_history(self) -> list[dict[str, Any]]:
        """All lines of `history.jsonl`, in the order of the stages."""
        if not self.history_file.is_file():
            return []
        return [json.loads(line) for line in self.history_file.read_text(encoding="utf-8").splitlines()]

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`, which marks the run as finished."""
        write_whole(self.metrics_file, json.dumps(metrics, indent=2) + "\n")

    def read_metrics(self) -> dict[str, Any] | None:
        """`metrics.json`, or None while the run is not finished."""
        return self.read_json(self.metrics_file)
