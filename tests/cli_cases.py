"""What the tests of the command line share: running one, a model, scans, a CSV of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from hf_kdmri import StudentForImageClassification
from hf_kdmri.cli import app
from tests.conftest import LABELS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save_model(folder: Path) -> Path:
    torch.manual_seed(0)
    StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=64).save_pretrained(folder)
    return folder


def slice_pixels(seed: int, high: int = 255) -> np.ndarray:
    y, x = np.mgrid[:60, :50]
    return (high * np.clip(1 - ((x - 25) / 20) ** 2 - ((y - 20 - seed) / 30) ** 2, 0, 1)).astype(int)


def write_scans(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(slice_pixels(0).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(slice_pixels(5).astype(np.uint8)).convert("RGBA").save(folder / "deep" / "b.PNG")
    Image.fromarray(slice_pixels(9).astype(np.uint8)).save(folder / "c, d.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def write_labels(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
