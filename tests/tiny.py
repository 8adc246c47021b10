"""Tiny models and data for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_kdmri import (
    DistillationModel,
    DistillationTrainer,
    DistillationTrainingArguments,
    StudentForImageClassification,
    TeacherForImageClassification,
)
from hf_kdmri.data.views import ViewDataset, collate_views
from tests.conftest import LABELS


def tiny_views(count: int = 32, size: int = 32, channels: int = 1, seed: int = 0) -> ViewDataset:
    """Noise whose brightness tells the class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count)
    views = draw.integers(0, 100, (count, channels, size, size)) + 50 * labels[:, None, None, None]
    views = views.astype(np.uint8)
    return ViewDataset([views[: count // 2], views[count // 2 :]], labels.astype(np.int64), size)


def tiny_model(with_teacher: bool = True, seed: int = 0) -> DistillationModel:
    """A transformer taught by a convolutional network, neither with batch statistics."""
    import torch

    torch.manual_seed(seed)
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32)
    teacher = TeacherForImageClassification.from_timm("test_convnext", labels=LABELS, image_size=64)
    return DistillationModel(student, teacher if with_teacher else None)


def sharp_student(folder: Path, architecture: str = "test_resnet", image_size: int = 64) -> Path:
    """Save an untrained student whose answers differ clearly from picture to picture, and return the folder."""
    import torch

    torch.manual_seed(0)
    student = StudentForImageClassification.from_timm(architecture, labels=LABELS, image_size=image_size)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, image_size)] * 2, indexing="ij")
    blob = 2 * (1 - x**2 / 0.6 - y**2 / 0.8).clamp(0, 1) - 1
    pictures = torch.stack([blob, -blob, blob.roll(9, 0), blob * 0.5 - 0.5, y]).unsqueeze(1).expand(-1, 3, -1, -1)
    head = student.timm_model.get_classifier()
    with torch.no_grad():
        logits = student.eval()(pictures).logits
        scale, shift = 1.5 / logits.std(0), logits.mean(0)
        head.bias.copy_((head.bias - shift) * scale)
        head.weight.mul_(scale[:, None])
    student.save_pretrained(folder)
    return folder


def tiny_trainer(output_dir: Path, model: DistillationModel | None = None, **options: Any) -> DistillationTrainer:
    """A trainer on 32 views, without augmentation unless asked for."""
    augmentation = options.pop("augmentation", None)
    callbacks = options.pop("callbacks", None)
    image_names = options.pop("image_names", None)
    defaults: dict[str, Any] = dict(
        per_device_train_batch_size=8,
        num_train_epochs=2,
        learning_rate=1e-3,
        disable_tqdm=True,
        geometry_weight=1.0,
        geometry_grid=2,
        eval_strategy="epoch",
    )
    return DistillationTrainer(
        model=model if model is not None else tiny_model(),
        args=DistillationTrainingArguments(output_dir=str(output_dir), **{**defaults, **options}),
        augmentation=augmentation,
        train_dataset=tiny_views(),
        eval_dataset=tiny_views(16, seed=1),
        data_collator=collate_views,
        callbacks=callbacks,
        image_names=image_names,
    )
