"""DeepSpeed trains what DistributedDataParallel trains, and goes on from its checkpoints."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_kdmri import (
    DistillationModel,
    DistillationTrainingArguments,
    StudentForImageClassification,
    TeacherForImageClassification,
)
from hf_kdmri.distillation import LossOptions
from hf_kdmri.training.deepspeed_runs import keep_weights_in_float32, use_plain_layout
from tests.conftest import LABELS, ROOT

OPTIONS = {
    "phantom_slices": 60,
    "teacher_architecture": "test_resnet",
    "teacher_image_size": 64,
    "student_architecture": "test_vit",
    "student_image_size": 32,
    "geometry_weight": 1.0,
    "geometry_grid": 2,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "teacher_num_train_epochs": 1,
    "baseline": False,
    "saliency": False,
}
installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install hf_kdmri[deepspeed]"
)


def launched(folder: Path, preset: str, out: str, *options: str, **changes: object) -> Path:
    """The folder of a run of two CPU processes with a preset of which some entries are changed."""
    config = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{preset}.yaml").read_text())
    (folder / "preset.yaml").write_text(yaml.safe_dump({**config, "num_processes": 2, "use_cpu": True, **changes}))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(OPTIONS))
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "preset.yaml"]
    done = subprocess.run(
        [*launch, str(ROOT / "train_kd.py"), "--config", "tiny.yaml", "--output_dir", out, *options],
        capture_output=True, text=True, cwd=folder, timeout=550,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
             "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / out


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


@installed
@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 3e-4), ("bf16", 1e-2)])
def test_zero_2_trains_what_distributed_data_parallel_trains(tmp_path: Path, precision: str, tolerance: float) -> None:
    divided = launched(tmp_path, "deepspeed", "divided", mixed_precision=precision)
    whole = launched(tmp_path, "two_cpu_processes", "whole", mixed_precision=precision)
    assert (divided / "report.html").is_file()
    for stage in ("teacher", "student"):
        ours, expected = weights(divided, stage), weights(whole, stage)
        assert ours.keys() == expected.keys()
        for name, value in ours.items():
            assert value.dtype == expected[name].dtype  # float32, in bf16 as well
            torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance)


@installed
@pytest.mark.slow
@pytest.mark.two_process
def test_a_run_under_zero_2_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = launched(tmp_path, "deepspeed", "run", mixed_precision="no")
    through = weights(run, "student")
    checkpoints = sorted((run / "checkpoints" / "student").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[-1])
    shutil.rmtree(run / "student")
    (run / "metrics.json").unlink()
    resumed = weights(launched(tmp_path, "deepspeed", "run", mixed_precision="no"), "student")
    for name, value in resumed.items():
        torch.testing.assert_close(value, through[name], rtol=0, atol=1e-4)


def test_weights_are_laid_out_as_deepspeed_sends_them() -> None:
    student = StudentForImageClassification.from_timm("test_convnext", labels=LABELS, image_size=64)
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64)
    model = DistillationModel(student, teacher, loss_options=LossOptions(geometry_weight=1.0), channels_last=True)
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert not all(value.is_contiguous() for value in before.values())
    use_plain_layout(model)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, before[name])
        if value.dim():
            value.data.view(torch.uint8)  # what DeepSpeed broadcasts; it refuses other strides
    assert model.channels_last  # of the inputs


def test_bfloat16_under_deepspeed_is_an_autocast_and_fp16_is_refused() -> None:
    plugin = SimpleNamespace(deepspeed_config={"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    keep_weights_in_float32(SimpleNamespace(deepspeed_plugin=plugin, bf16=True, mixed_precision="bf16"))  # type: ignore[arg-type]
    assert not plugin.deepspeed_config["bf16"].get("enabled", False)
    assert plugin.deepspeed_config["torch_autocast"]["enabled"] and plugin.deepspeed_config["zero_optimization"]
    with pytest.raises(ValueError, match="fp16 does not work with DeepSpeed"):
        keep_weights_in_float32(SimpleNamespace(deepspeed_plugin=plugin, bf16=False, mixed_precision="fp16"))  # type: ignore[arg-type]


def test_what_does_not_go_with_it_is_refused_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for option in ({"ema_decay": 0.9}, {"compile_teacher": True}):
        with pytest.raises(ValueError, match=next(iter(option))):
            DistillationTrainingArguments(output_dir=str(tmp_path), deepspeed="zero.json", **option)  # type: ignore[arg-type]
    if importlib.util.find_spec("deepspeed") is None and not torch.accelerator.is_available():
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        with pytest.raises(ValueError, match=r"needs a GPU, and there is none; .*DS_ACCELERATOR=cpu"):
            DistillationTrainingArguments(output_dir=str(tmp_path), deepspeed="zero.json")
