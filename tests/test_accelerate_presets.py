"""The presets of configs/accelerate are what accelerate reads, and the one for CPUs starts what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import DistributedType

from hf_kdmri.training.arguments import DistillationTrainingArguments
from tests.conftest import ROOT

FOLDER = ROOT / "configs" / "accelerate"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
GPUS = {"several_gpus", "several_nodes", "sharded_teacher", "deepspeed"}


def preset(name: str) -> str:
    return str(FOLDER / f"{name}.yaml")


def test_there_is_one_for_every_size() -> None:
    assert {*PRESETS} == GPUS | {"one_gpu", "two_cpu_processes"}


@pytest.mark.parametrize("name", PRESETS)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(preset(name))  # refuses unknown keys
    assert config.use_cpu == (name == "two_cpu_processes")
    assert config.num_processes == {"one_gpu": 1, "two_cpu_processes": 2, "several_nodes": 16}.get(name, 8)
    assert config.mixed_precision == ("no" if config.use_cpu else "bf16")
    arguments = launch_command_parser().parse_args(["--config_file", preset(name), "train_kd.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.multi_gpu == (name in GPUS - {"deepspeed"} | {"two_cpu_processes"})
    assert arguments.use_deepspeed == (name == "deepspeed") and not arguments.use_fsdp


def test_the_sharded_teacher_is_not_accelerates_fsdp() -> None:
    config = load_config_from_file(preset("sharded_teacher"))
    assert config.distributed_type == DistributedType.MULTI_GPU and not config.fsdp_config


@pytest.mark.parametrize("name", PRESETS)
def test_it_says_how_to_start_it_and_what_to_edit(name: str) -> None:
    text = Path(preset(name)).read_text()
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in text and "\n# Edit:" in text


def test_precision_of_the_launcher_is_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert DistillationTrainingArguments(output_dir=str(tmp_path)).bf16  # so that config.yaml tells it


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_without_its_package_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = launch_command_parser().parse_args(["--config_file", preset("deepspeed"), "train_kd.py"])
    with pytest.raises(ImportError, match="pip3 install deepspeed"):
        launch_command(arguments)
    with pytest.raises(ValueError, match="pip install deepspeed, or launch without it"):
        DistillationTrainingArguments(output_dir=str(tmp_path), deepspeed="zero.json")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # by torchrun, with accelerate's variables
    with pytest.raises(ValueError, match="pip install deepspeed, or launch without it"):
        DistillationTrainingArguments(output_dir=str(tmp_path))


@pytest.mark.slow
@pytest.mark.two_process
def test_two_cpu_processes_do_the_whole_job(tmp_path: Path) -> None:
    options = {
        "phantom_slices": 60,
        "teacher_architecture": "test_resnet",
        "teacher_image_size": 64,
        "student_architecture": "test_vit",
        "student_image_size": 32,
        "num_train_epochs": 1,
        "geometry_grid": 2,
        "per_device_train_batch_size": 8,
        "shard_teacher": True,
        "baseline": False,
        "saliency": False,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command = [*launch, "--config_file", preset("two_cpu_processes"), str(ROOT / "train_kd.py")]
    done = subprocess.run(
        [*command, "--config", "tiny.yaml", "--output_dir", "run"],
        capture_output=True, text=True, cwd=tmp_path, timeout=550,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["launches"][-1]["processes"] == 2
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["models"]["teacher"]["n"] == metrics["models"]["student"]["n"] == metrics["run"]["slices"]["test"]
    assert done.stdout.count("[5/5] Testing") == 1
