"""Distil what a large model of one architecture knows about brain MRI into a small model of another."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "TeacherForImageClassification": "hf_kdmri.models",
    "StudentForImageClassification": "hf_kdmri.models",
    "DistillationModel": "hf_kdmri.distillation",
    "DistillationTrainer": "hf_kdmri.training",
    "DistillationTrainingArguments": "hf_kdmri.training",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import hf_kdmri.data` does not pay for torch and timm."""
    if name not in _HOME:
        raise AttributeError(f"module 'hf_kdmri' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
