"""Small sets as a user might bring them, and how they are loaded."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_kdmri.data.own.loading import OwnData, load_own_data

CLASSES = ["<script>", 'a: "b" | c', "glioma", "no tumour"]
TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture whose colours tell its class, `number % 4`."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., number % 3] += 60 * (number % 4 // 2 + 1)
    return Image.fromarray(pixels).convert(mode)


def save_folders(root: Path, per_class: int = 10, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    for number in range(per_class * len(names)):
        folder = root / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    return root


def save_parquet(root: Path, splits: dict[str, dict[str, list]], **features: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    types = datasets.Features({"image": datasets.Image(), **features})
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        start = 1000 * list(splits).index(split)
        rows = {"image": [picture(start + i, size=(8, 8)) for i in range(count)], **columns}
        rows = {name: rows[name] for name in types}
        datasets.Dataset.from_dict(rows, features=types).to_parquet(str(root / f"{split}.parquet"))
    return root


def load(root: Path, **options: object) -> OwnData:
    return load_own_data(str(root), cache_dir=root.parent / "cache", **options)  # type: ignore[arg-type]


def keys(split: datasets.Dataset) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in split["image"]]
