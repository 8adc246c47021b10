"""Model cards, their rules, and publishing to the Hugging Face Hub."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "OwnDataFacts": "own_data_card",
    "StudentCardFacts": "model_card",
    "write_student_card": "model_card",
    "CardError": "card_rules",
    "check_card": "card_rules",
    "copy_handler": "endpoint_handler",
    "Push": "publish",
    "PublishError": "hub_errors",
    "find_model_folder": "publish",
    "plan_release": "release",
    "push_folder": "publish",
    "push_release": "release",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `kdmri push --dry-run` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'hf_kdmri.hub' has no attribute {name!r}; its public names are {', '.join(_HOME)}"
        )
    return getattr(importlib.import_module(f"hf_kdmri.hub.{_HOME[name]}"), name)
