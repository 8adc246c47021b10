"""A finished run in miniature, made without training: what `train_kd.py` leaves, as far as a push reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.hub import StudentCardFacts, write_student_card
from tests.conftest import LABELS


def make_run(path: Path, *, seed: int = 0, options: dict[str, Any] | None = None) -> Path:
    """Write the run folder and return it."""
    torch.manual_seed(seed)
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32)
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64)
    for model in (student, teacher):  # a fresh classifier gives almost the same to every picture
        model.timm_model.get_classifier().weight.data.normal_()
    student.save_pretrained(path / "student")
    teacher.save_pretrained(path / "teacher")
    (path / "figures").mkdir()
    for name in ("training_curves", "predictions", "saliency"):
        Image.new("RGB", (40, 30)).save(path / "figures" / f"{name}.png")
    scores = {"accuracy": 0.9, "macro_f1": 0.8, "parameters": 300_000, "ms_per_image": 1.0, "n": 10}
    rows = {
        "teacher": {"model": "Teacher", "architecture": "test_resnet", **scores},
        "student": {"model": "Distilled student", "architecture": "test_vit", **scores},
    }
    facts = {
        "command": f"accelerate launch train_kd.py --config {path}/tiny.yaml --data_dir={path}",
        "source": "generated phantoms",
        "split": "patient_groups",
        "fold": 0,
        "seed": 7,
        "phantom": True,
        "own_data": False,
        "slices": {"train": 20, "validation": 6, "test": 10},
        "versions": {"torch": "2", "timm": "1"},
        "machine": "a test",
        "figures": [str(path / "figures" / "training_curves.png")],
    }
    metrics = {"schema": "hf_kdmri/metrics/2", "run": facts, "models": rows, "evaluation": {"summary": {}}}
    (path / "metrics.json").write_text(json.dumps(metrics))
    config = {"teacher": None, "temperature": 4.0, "logit_weight": 1.0, "geometry_weight": 0.0, "geometry_grid": 7}
    (path / "config.yaml").write_text(yaml.safe_dump({**config, **(options or {})}))
    write_student_card(
        path / "student",
        StudentCardFacts(
            model_name="kdmri-test_vit",
            results=list(rows.values()),
            teacher="test_resnet",
            losses={"cross-entropy": "weight 1"},
            split="patient_groups",
            fold=0,
            seed=7,
            training_command="train_kd.py --config tiny.yaml",
            versions={"torch": "2"},
            machine="a test",
            phantom=True,
        ),
    )
    return path
