"""The static page that runs a student in the browser: its own files, the student as ONNX, and what is known of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, SpaceCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from hf_kdmri.hub_names import check_model_name
from hf_kdmri.inference import TEMPERATURE_KEY
from hf_kdmri.shipped import shipped_folder
from hf_kdmri.whole_files import sha256_of, sync_folder

SCHEMA = "hf_kdmri/space-model/1"
THRESHOLD = 0.5  # below it, the likeliest name is less likely than all the others together
INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("squash", "center")
_GENERATOR = '<meta name="generator" content="hf_kdmri space">'
_WRITTEN = ("model.onnx", "model.json")  # besides README.md, whose head names the model
_HUB_CARD = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")


def page_folder() -> Path:
    """Return the folder of the page's own files: inside the installed package, or at the top of a checkout.

    Raises:
        FileNotFoundError: Neither is there.
    """
    folder = shipped_folder("space", "space", "index.html")
    if folder is None:
        missing = Path(__file__).resolve().parents[1] / "space"
        raise FileNotFoundError(f"{missing} is missing; install hf_kdmri again, its wheel carries the page")
    return folder


def write_space(
    out: str | Path,
    model: str | Path,
    *,
    name: str | None = None,
    card: str | None = None,
    threshold: float = THRESHOLD,
) -> Path:
    """Write a folder that is the page with one student, ready for any web server or a Space of the kind "static".

    Everything is prepared beside `out` and put in place at the end, so that an error leaves what was there. A folder
    that holds the page already gets the new student; files that do not belong to the page are left alone.

    Args:
        out: New or empty folder, or one that holds the page.
        model: Folder or Hub name of a timm_wrapper classifier.
        name: What the page calls it. Default: as its card does, or the folder's or repository's name.
        card: Address of the model card. Default: the Hub's page where `model` is a Hub name, else none.
        threshold: 0–1; where the highest probability is lower, the page says that the model is not sure enough.

    Returns:
        `out`, as a path.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError: a threshold or an address that is none, or preprocessing that the page does not know.
        ImportError: The extra `onnx` is not installed.
        ExportError: The exported file does not compute what the model computes.
    """
    from hf_kdmri.export import export_onnx

    out = Path(out)
    _check_target(out)
    facts = model_facts(model, name=name, card=card, threshold=threshold)
    source = page_folder()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as temporary:
        prepared = Path(temporary, "page")
        shutil.copytree(
            source,
            prepared,
            copy_function=shutil.copyfile,
            ignore=shutil.ignore_patterns(*_WRITTEN, ".*", "__pycache__"),
        )
        onnx = export_onnx(model, prepared / "model.onnx")
        facts["file"] = {"name": onnx.name, "bytes": onnx.stat().st_size, "sha256": sha256_of(onnx)}
        (prepared / "model.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _name_in_readme(prepared / "README.md", facts)
        _put_in_place(prepared, out)
    return out


def model_facts(
    model: str | Path, *, name: str | None = None, card: str | None = None, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Collect what the page shows and needs of a model, without its file.

    Args:
        model: Folder or Hub name.
        name: As for `write_space`.
        card: As for `write_space`.
        threshold: As for `write_space`.

    Returns:
        What `model.json` holds: `schema`, `name`, `architecture`, `labels`, `preprocessing`, `temperature` (or None),
        `threshold`, `results` (from the card's model index), `card` (or None), `warning` (or None).

    Raises:
        ValueError: as for `write_space`.
    """
    from timm.data import resolve_data_config
    from transformers import AutoConfig

    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold is {threshold}; expected a probability, 0 to 1")
    is_folder = Path(model).is_dir()
    if card is None and not is_folder:
        card = f"https://huggingface.co/{model}"
    if card is not None and not re.fullmatch(r"https?://[^\s]+", card):
        raise ValueError(f"{card!r} is no address of a model card; expected http://… or https://…")
    check_model_name(model)
    config = AutoConfig.from_pretrained(model)
    if getattr(config, "pretrained_cfg", None) is None:
        raise ValueError(f"{str(model)!r} is no timm_wrapper classifier: its config.json has no pretrained_cfg")
    preprocessing = dict(resolve_data_config(pretrained_cfg=config.pretrained_cfg))
    _check_preprocessing(preprocessing, model)
    model_card = _read_card(model, is_folder)
    data = model_card.data if model_card is not None else None
    tags = getattr(data, "tags", None) or []
    return {
        "schema": SCHEMA,
        "name": name or getattr(data, "model_name", None) or Path(model).resolve().name,
        "architecture": config.architecture,
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "preprocessing": preprocessing,
        "temperature": getattr(config, TEMPERATURE_KEY, None),
        "threshold": threshold,
        "results": [
            {
                "name": result.metric_name or result.metric_type,
                "value": result.metric_value,
                "data": ", ".join(
                    part for part in (result.dataset_name, result.dataset_config, result.dataset_split) if part
                ),
            }
            for result in getattr(data, "eval_results", None) or []
            if isinstance(result.metric_value, int | float) and 0 <= result.metric_value <= 1
        ],
        "card": card,
        "warning": (
            "This model was trained on generated phantoms, to show that everything works. It knows nothing about MRI."
            if "generated-phantoms" in tags
            else None
        ),
    }


def _check_preprocessing(preprocessing: dict[str, Any], model: str | Path) -> None:
    channels, height, width = preprocessing["input_size"]
    preprocessing["crop_mode"] = preprocessing["crop_mode"] or "center"
    for fine, what in (
        (
            channels == 3 and height == width,
            f"input_size {preprocessing['input_size']}",
        ),
        (preprocessing["interpolation"] in INTERPOLATIONS, f"interpolation {preprocessing['interpolation']!r}"),
        (preprocessing["crop_mode"] in CROP_MODES, f"crop_mode {preprocessing['crop_mode']!r}"),
        (0 < preprocessing["crop_pct"] <= 1, f"crop_pct {preprocessing['crop_pct']}"),
    ):
        if not fine:
            raise ValueError(
                f"the page cannot prepare pictures as {str(model)!r} asks: {what}. It knows squares of 3 channels, "
                f"{' and '.join(INTERPOLATIONS)}, {' and '.join(CROP_MODES)}"
            )


def _read_card(model: str | Path, is_folder: bool) -> ModelCard | None:
    if is_folder:
        path = Path(model) / "README.md"
        return ModelCard.load(path) if path.is_file() else None
    try:
        return ModelCard.load(hf_hub_download(str(model), "README.md"))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _check_target(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    index = out / "index.html"
    if not index.is_file() or _GENERATOR not in index.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{out} exists and is not this page; give a new or empty folder")


def _name_in_readme(path: Path, facts: dict[str, Any]) -> None:
    """Put the model's name into the head that the Hub reads; it is YAML, so names are quoted where they must be."""
    readme = SpaceCard.load(path)
    readme.data.title = facts["name"]
    if match := _HUB_CARD.fullmatch(facts["card"] or ""):
        readme.data.models = [match[1]]
    readme.save(path)


def _put_in_place(prepared: Path, out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        os.replace(prepared, out)
    else:
        files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: file.name == "model.json"):  # last: it vouches for the model's file
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(prepared / file, out / file)
    sync_folder(out.parent)
