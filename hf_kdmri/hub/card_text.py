"""Fixed texts of the model cards: what each split means, code that readers copy, and citations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

SPLITS = {
    "patient_groups": (
        "Five folds, stratified by class and grouped by patient: all slices of a patient group (ids that differ only "
        "in a letter suffix count as one) are in the training, the validation **or** the test split, never in two."
    ),
    "cvind": (
        "The authors' own five folds (`cvind.mat`), grouped by patient id, for comparison with the literature. **They "
        "divide 15 of the 18 groups of ids that are most likely one patient each, so they may leak.** The folds by "
        "patient group are the ones to trust."
    ),
    "random_slices": (
        "**Slices split at random, to reproduce older reports: this split leaks.** Slices of one patient are in "
        "training and test, so the numbers below show memory and say nothing about new patients."
    ),
}

PLACEHOLDER = "path/to/student"  # in the snippets of a card that is written before the repository has a name

PIPELINE_SNIPPET = """
from transformers import pipeline

classify = pipeline("image-classification", model="{model}")
print(classify("slice.png"))  # 8-bit; for 16-bit images see "Things that will bite you"
"""

TIMM_SNIPPET = """
import timm
import torch
from PIL import Image

model = timm.create_model("{model}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    probabilities = model(transform(Image.open("slice.png").convert("RGB"))[None]).softmax(-1)[0]
print(dict(zip(model.pretrained_cfg["label_names"], probabilities.tolist())))
"""

WINDOW_SNIPPET = """
import numpy as np
from PIL import Image

raw = np.asarray(Image.open("slice_16bit.png")).astype("float64")
low, high = np.percentile(raw, (0.1, 99.9))
pixels = (np.clip((raw - low) / (high - low), 0, 1) * 255).round().astype("uint8")
image = Image.fromarray(pixels).convert("RGB")  # ready for the pipeline
"""

CITED_DATA = ("cheng2015enhanced", "cheng2016retrieval", "cheng2017brain")


def citations(keys: Iterable[str]) -> str:
    """BibTeX entries of `model_cards/citations.bib`, each once, in the order of the file.

    Raises:
        KeyError: the file has no such entry.
    """
    text = files("model_cards").joinpath("citations.bib").read_text(encoding="utf-8")
    entries = {entry[1]: entry[0].strip() for entry in re.finditer(r"@\w+\{(\w+),.*?\n\}", text, re.S)}
    if missing := set(keys) - set(entries):
        raise KeyError(f"citations.bib has no entry {', '.join(sorted(missing))}")
    return "\n\n".join(entry for key, entry in entries.items() if key in set(keys))
