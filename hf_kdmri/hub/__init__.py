"""Model cards, their rules, and publishing to the Hugging Face Hub."""

from __future__ import annotations

from hf_kdmri.lazy_names import lazy_names

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
__getattr__ = lazy_names(__name__, _HOME)  # so that `kdmri push --dry-run` does not wait for torch
