"""`TrainingArguments` with the distillation's own numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from hf_kdmri.distillation import LossOptions

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Transformers' training arguments, with defaults for this task and one field for every number of the loss."""

    _argument_group_name = "distillation and training (transformers' TrainingArguments)"

    logit_weight: float = field(
        default=1.0, metadata={"help": "λ of Hinton's loss on the teacher's logits; 0 switches the term off."}
    )
    temperature: float = field(default=4.0, metadata={"help": "Temperature T of Hinton's loss."})
    geometry_weight: float = field(
        default=1.0, metadata={"help": "λ of the fused spatial similarity over the stages; 0 switches the term off."}
    )
    geometry_grid: int = field(
        default=7, metadata={"help": "Cells per side of the raster that stages are compared on."}
    )
    distillation_warmup: float = field(
        default=0.0, metadata={"help": "Share of all steps over which both λ rise linearly from 0."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision of the teacher's forward: auto (as the student's), float32 or bfloat16.",
            "choices": list(_DTYPES),
        },
    )
    channels_last: bool = field(
        default=True, metadata={"help": "Lay out images channels-last, which is faster on CPU and on tensor cores."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads per process on a CPU; by default all cores, shared by this machine's processes."},
    )
    # Fields of TrainingArguments whose defaults suit this task better.
    num_train_epochs: float = field(default=30.0, metadata={"help": "Epochs of every stage."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Slices per step and process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Slices per evaluation batch and process."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint: no, steps or epoch."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept per stage."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Views need their index; leave this off."})

    def __post_init__(self) -> None:
        """Check ranges at creation, not at step 900."""
        if not 0 <= self.distillation_warmup <= 1:
            raise ValueError(f"distillation_warmup is {self.distillation_warmup}; it is a share of steps, 0 to 1")
        if self.teacher_dtype not in _DTYPES:
            raise ValueError(f"teacher_dtype is {self.teacher_dtype!r}; choose one of {', '.join(_DTYPES)}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads is {self.cpu_threads}; at least 1 is needed, or leave it out for all cores")
        self.loss_options()
        if not torch.accelerator.is_available():
            # Trainer refuses bf16 without a GPU unless told that the CPU is meant; here there is nothing else to mean.
            self.use_cpu = True
            self.dataloader_pin_memory = False
        super().__post_init__()

    def apply_cpu_threads(self) -> None:
        """Set torch's thread count. `accelerate launch` sets OMP_NUM_THREADS=1, which idles all cores but one."""
        if self.use_cpu:
            available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            torch.set_num_threads(self.cpu_threads or max(1, available // processes))

    def loss_options(self) -> LossOptions:
        """The numbers of the loss."""
        return LossOptions(
            logit_weight=self.logit_weight,
            temperature=self.temperature,
            geometry_weight=self.geometry_weight,
            geometry_grid=self.geometry_grid,
            label_smoothing=self.label_smoothing_factor,
        )

    def teacher_torch_dtype(self) -> torch.dtype | None:
        """`teacher_dtype` as torch knows it; None for the precision that surrounds the teacher."""
        return _DTYPES[self.teacher_dtype]
