"""What the Hub refuses or cannot show in a model card, found before anything is sent and without the network.

The rules are those of https://huggingface.co/docs/hub/model-cards and of the validator behind `ModelCard.validate`,
as far as they concern an image classifier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_HEAD = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.S)
_UNFINISHED = ("more information needed", "{{", "{%", "todo:")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class CardError(ValueError):
    """A card that the Hub would refuse or show wrongly; the message lists every fault."""


def check_card(folder: str | Path) -> ModelCardData:
    """Check the `README.md` of a model folder.

    Args:
        folder: of the model; pictures that the card names must be in it.

    Returns:
        The card's metadata.

    Raises:
        CardError: the card is missing or has faults.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise CardError(f"{path} is missing")
    return check_card_text(path.read_text(encoding="utf-8"), lambda name: (Path(folder) / name).is_file(), str(path))


def check_card_text(text: str, holds: Callable[[str], bool], name: str = "README.md") -> ModelCardData:
    """Check a card that is not on disk.

    Args:
        text: of the card.
        holds: whether the repository will hold a file of this path.
        name: what messages call the card.

    Returns:
        The card's metadata.

    Raises:
        CardError: the card has faults.
    """
    head = _HEAD.match(text)
    if head is None:
        raise CardError(f"{name} does not begin with metadata between two lines of ---")
    try:
        metadata = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        raise CardError(f"the metadata of {name} are no YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise CardError(f"the metadata of {name} are no mapping")
    faults = [*_metadata_faults(metadata), *_picture_faults(metadata, text, holds), *_text_faults(text)]
    try:
        data = ModelCardData(**metadata, ignore_metadata_errors=False)
    except (ValueError, TypeError, KeyError) as error:
        faults.append(f"model-index: {error}")
    if faults:
        raise CardError(f"{name} breaks the Hub's rules:\n" + "\n".join(f"  {fault}" for fault in faults))
    return data


def _metadata_faults(metadata: dict[str, Any]) -> Iterator[str]:
    if metadata.get("pipeline_tag") != "image-classification":
        yield f"pipeline_tag is {metadata.get('pipeline_tag')!r}; expected image-classification"
    if metadata.get("library_name") not in ("transformers", "timm"):
        yield f"library_name is {metadata.get('library_name')!r}; expected transformers or timm"
    licence = metadata.get("license")
    if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
        yield f"license is {licence!r}; expected an identifier such as apache-2.0"
    for key in ("tags", "metrics"):
        values = metadata.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            yield f"{key} is {values!r}; expected a list of words"
    for key in ("base_model", "datasets"):
        values = metadata.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            try:
                validate_repo_id(value)
            except HFValidationError as error:
                yield f"{key}: {error}"
    for entry in metadata.get("model-index") or []:
        if not isinstance(entry, dict) or not entry.get("name"):
            yield "model-index: an entry without a name"
            continue
        for result in entry.get("results") or []:
            yield from _result_faults(result)


def _result_faults(result: Any) -> Iterator[str]:
    for part, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
        for key in keys:
            if not isinstance(result, dict) or not (result.get(part) or {}).get(key):
                yield f"model-index: a result without {part}.{key}"
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not metrics:
        yield "model-index: a result without metrics"
    for metric in metrics or []:
        value = metric.get("value")
        if not metric.get("type"):
            yield "model-index: a metric without a type"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"model-index: {metric.get('name') or metric.get('type')} is {value!r}; expected a finite number"


def _picture_faults(metadata: dict[str, Any], text: str, holds: Callable[[str], bool]) -> Iterator[str]:
    widget = metadata.get("widget") or []
    for example in widget:
        if not isinstance(example, dict) or not isinstance(example.get("src"), str):
            yield f"widget: {example!r} has no src"
        elif fault := _missing(example["src"], holds):
            yield f"widget: {fault}"
    for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        if fault := _missing(link, holds):
            yield fault


def _missing(place: str, holds: Callable[[str], bool]) -> str | None:
    if re.match(r"https?://", place):
        return None
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts:
        return f"{place} lies outside the repository"
    return None if holds(str(parts)) else f"{place} is not in the folder"


def _text_faults(text: str) -> Iterator[str]:
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.S | re.M)
    for mark in _UNFINISHED:
        if mark in prose.lower():
            yield f"the text holds {mark!r}: it is not finished"
