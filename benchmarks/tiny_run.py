"""The smallest run of train_kd.py that has every part: what is killed, and what is reproduced."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "phantom_slices": 40,
    "teacher_architecture": "test_resnet",
    "teacher_image_size": 64,
    "student_architecture": "test_vit",
    "student_image_size": 32,
    "student_drop_path_rate": 0.2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "geometry_grid": 2,
    "baseline": False,
    "saliency": False,
    "cpu_threads": 1,
    "disable_tqdm": True,
    "seed": 7,
}
