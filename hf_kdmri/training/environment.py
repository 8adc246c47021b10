"""`environment.json` of a run: what it was made with and from, to repeat it and to tell why two runs differ."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from hf_kdmri.data.pictures import read_picture_bytes
from hf_kdmri.hub.provenance import code_state
from hf_kdmri.secrets import hide_in_command, hide_secrets

_INDIRECT = ("torchvision", "triton", "tokenizers", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")  # not in our requirements
# By name, never by beginning: HF_ has the token, too.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "KMP_BLOCKTIME", "LD_PRELOAD"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO"),
    *("PYTHONHASHSEED", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE"),
)


def describe_environment(*, full_determinism: bool = False) -> dict[str, Any]:
    """Versions, code, hardware, threads and variables of this process.

    Args:
        full_determinism: whether the run chose deterministic kernels; on a CPU all are.

    Returns:
        `time` (UTC), `command`, `python`, `versions` (of the packages that this one needs and those they compute with),
        `code` (version, and with git commit and `modified`), `hardware`, `threads`, `processes`,
        `deterministic` and `variables`; no tokens.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": hide_in_command(sys.argv),
        "python": platform.python_version(),
        "versions": package_versions(),
        "code": code_state(),
        "hardware": _hardware(),
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes if PartialState._shared_state else 1,
        "deterministic": full_determinism or not torch.accelerator.is_available(),
        "variables": {name: hide_secrets(os.environ[name]) for name in _VARIABLES if name in os.environ},
    }


def package_versions() -> dict[str, str]:
    """Versions of the installed packages among those that this one requires, extras included, and some behind them."""
    try:
        named = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requires("hf_kdmri") or ()]
    except PackageNotFoundError:  # run from a checkout that is not installed
        named = ["accelerate", "datasets", "kornia", "numpy", "pillow", "scikit-learn", "timm", "torch", "transformers"]
    found = {}
    for name in sorted({*named, *_INDIRECT}, key=str.lower):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def data_fingerprint(splits: Mapping[str, datasets.Dataset]) -> dict[str, Any]:
    """A checksum of each split: its images as they are encoded, their classes and, where known, patient groups.

    Returns:
        By split: `images` and `sha256`. The same pictures encoded anew have another checksum.
    """
    told = {}
    for name, split in splits.items():
        digest = hashlib.sha256()
        columns = [column for column in ("image", "label", "patient_group") if column in split.column_names]
        encoded = split.select_columns(columns).cast_column("image", datasets.Image(decode=False))
        for row in encoded:
            for column in columns:
                value = read_picture_bytes(row[column]) if column == "image" else str(row[column]).encode()
                digest.update(len(value).to_bytes(8, "little") + value)
        told[name] = {"images": len(split), "sha256": digest.hexdigest()}
    return told


def environment_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two environments may change a result, in one line each; time and command do not.

    Args:
        before: as `describe_environment` gives it.
        now: likewise.
    """
    lines = []
    for group in ("versions", "code", "hardware", "variables"):
        one, other = before.get(group, {}), now.get(group, {})
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                lines.append(f"{group} {key}: {one.get(key, 'absent')} then, {other.get(key, 'absent')} now")
    for key in ("python", "threads", "processes"):
        if before.get(key) != now.get(key):
            lines.append(f"{key}: {before.get(key)} then, {now.get(key)} now")
    return lines


def _hardware() -> dict[str, Any]:
    device = torch.accelerator.current_accelerator(check_available=True)
    told: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "accelerator": None if device is None else device.type,
    }
    if device is not None and device.type == "cuda":
        told |= {
            "accelerator_name": torch.cuda.get_device_name(),
            "accelerators": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return told


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
