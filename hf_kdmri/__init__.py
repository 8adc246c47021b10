"""Distil what a large model of one architecture knows about brain MRI into a small model of another."""

from __future__ import annotations

from hf_kdmri.lazy_names import lazy_names

__version__ = "0.1.0"

_HOME = {
    "TeacherForImageClassification": "models",
    "StudentForImageClassification": "models",
    "DistillationModel": "distillation",
    "DistillationTrainer": "training",
    "DistillationTrainingArguments": "training",
}
__all__ = ["__version__", *_HOME]
# so that `import hf_kdmri.data` does not pay for torch and timm
__getattr__ = lazy_names(__name__, _HOME, also=("__version__",))
