"""Options, the trainer, and the stages of a run."""

from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "DistillationTrainingArguments"]
