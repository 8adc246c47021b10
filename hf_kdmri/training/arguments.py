"""`TrainingArguments` with the distillation's own numbers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from hf_kdmri.distillation import LossOptions
from hf_kdmri.distillation.kernels import MAX_TRANSPORT_POINTS
from hf_kdmri.distillation.terms import FEWEST_IMAGES
from hf_kdmri.training.deepspeed_runs import asks_for_deepspeed, check_deepspeed, keep_weights_in_float32

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class DistillationTrainingArguments(LossOptions, TrainingArguments):
    """Transformers' training arguments, with defaults for this task, and every number of the loss (`LossOptions`)."""

    _argument_group_name = "distillation and training (transformers' TrainingArguments)"

    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision of the teacher's forward: auto (as the student's), float32 or bfloat16.",
            "choices": list(_DTYPES),
        },
    )
    compile_teacher: bool = field(
        default=False,
        metadata={
            "help": "Compile the teacher (torch.compile), which pays from about ten epochs on: on a CPU it then takes "
            "some two thirds of the time. Needs a C++ compiler."
        },
    )
    shard_teacher: bool = field(
        default=False,
        metadata={
            "help": "Divide a large teacher's weights among the processes of each machine (FSDP2); the student stays "
            "whole on each. Needs several processes."
        },
    )
    channels_last: bool = field(
        default=True, metadata={"help": "Lay out images channels-last, which is faster on CPU and on tensor cores."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads per process on a CPU; by default all cores, shared by this machine's processes."},
    )
    keep_memory: bool = field(
        default=True,
        metadata={
            "help": "On a CPU, keep freed memory for the next step, in huge pages (Linux with glibc; elsewhere without "
            "effect). Faster, and no digit changes; the process holds its peak of memory until it ends."
        },
    )
    mixup: float = field(
        default=0.0,
        metadata={
            "help": "α of mixup: each view is mixed with another of its batch, for teacher and student alike; 0: none."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "On several processes, look in every step for weights that had no part in the loss. Nothing here "
            "has such; a student of your own may, and is refused without this."
        },
    )
    views_per_image: int | None = field(
        default=None,
        metadata={"help": "Random views of each image: epoch e trains on view e mod this; default: a new view each."},
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps what the teacher says of all views (built if absent), so that further students "
            "need not ask it again; views_per_image is then by default the number of epochs."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of a moving average of the weights, which is then validated and saved, e.g. 0.999; it rises "
            "to this as 1 - (1 + step)^(-3/4). 0: none."
        },
    )
    loss_spike_factor: float = field(
        default=10.0,
        metadata={
            "help": "A step's loss above this many times the median of the 100 before is logged as a spike, with its "
            "images; 0: none is."
        },
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
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept per stage; with 2, one is left where the last is damaged."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Without use here: numbers that are not finite stop the run."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Views need their index; leave this off."})

    def __post_init__(self) -> None:
        """Check ranges at creation, not at step 900."""
        if self.teacher_dtype not in _DTYPES:
            raise ValueError(f"teacher_dtype is {self.teacher_dtype!r}; choose one of {', '.join(_DTYPES)}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads is {self.cpu_threads}; at least 1 is needed, or leave it out for all cores")
        if self.views_per_image is not None and self.views_per_image < 1:
            raise ValueError(f"views_per_image is {self.views_per_image}; at least 1 is needed")
        if self.loss_spike_factor and not self.loss_spike_factor > 1:
            raise ValueError(f"loss_spike_factor is {self.loss_spike_factor}; it must be above 1, or 0 for no spikes")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be at least 0 (no average) and below 1")
        LossOptions.__post_init__(self)
        self._check_mixup()
        if self.teacher_cache is not None and self.max_steps > 0 and self.views_per_image is None:
            raise ValueError("teacher_cache with max_steps needs views_per_image: how many views of each image to keep")
        if self.teacher_cache is not None and self.needs_teacher_maps:
            raise ValueError(
                f"feature_loss {self.feature_loss} compares the teacher's feature maps, which teacher_cache does not "
                "keep; leave teacher_cache out, or feature_weight at 0"
            )
        if self.compile_teacher and (self.torch_compile or self.shard_teacher):
            other = "torch_compile, which compiles the teacher with all else" if self.torch_compile else "shard_teacher"
            raise ValueError(f"compile_teacher cannot go with {other}; leave one of the two out")
        if self.shard_teacher and self.teacher_cache is not None:
            raise ValueError(
                "shard_teacher needs all processes to ask the teacher equally often, and teacher_cache has each ask "
                "about its own share of the images; leave one of the two out"
            )
        if asks_for_deepspeed(self):
            check_deepspeed(self)
        if not torch.accelerator.is_available():
            # Trainer refuses bf16 without a GPU unless told that the CPU is meant; here there is nothing else to mean.
            self.use_cpu = True
            self.dataloader_pin_memory = False
        TrainingArguments.__post_init__(self)
        if self.mixed_precision == "bf16":
            self.bf16 = True  # asked for by accelerate's configuration; the run's must tell it, too
        keep_weights_in_float32(self)
        self._check_batches()

    def _check_mixup(self) -> None:
        """Refuse what needs one label per image, or answers about views as they are."""
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup is {self.mixup}; it must be a finite number of at least 0, and 0 mixes nothing")
        needs_one_label = {
            "logit_loss dkd": self.uses("logit", "dkd"),
            "exit_weight": self.exit_weight > 0,
            "feature_loss ofa": self.uses("feature", "ofa"),
        }
        for name, asked in needs_one_label.items():
            if self.mixup and asked:
                raise ValueError(f"{name} needs one label per image, and mixup gives two; leave one of them out")
        if self.mixup and self.teacher_cache is not None:
            raise ValueError(
                "teacher_cache keeps what the teacher says of single views, and mixup asks about mixed ones; leave one "
                "of the two out"
            )

    def _check_batches(self) -> None:
        """Refuse batches in which a term between images would always be 0, or could not be computed."""
        images = self.train_batch_size * self.world_size
        way_out = f"the batch has {images} over all processes; change per_device_train_batch_size"
        related = f"sample_loss {self.sample_loss}" if self.sample_weight > 0 else "logit_loss dist"
        if images < FEWEST_IMAGES and (self.sample_weight > 0 or self.uses("logit", "dist")):
            raise ValueError(f"{related} relates at least {FEWEST_IMAGES} images, and {way_out}")
        if self.uses("sample", "gromov_wasserstein") and images > MAX_TRANSPORT_POINTS:
            raise ValueError(
                f"sample_loss gromov_wasserstein takes at most {MAX_TRANSPORT_POINTS} images, and {way_out}, or take "
                "another sample_loss"
            )
        if self.shuffle_teacher and self.train_batch_size < 2:
            raise ValueError(
                "shuffle_teacher teaches each image with another one of its process's batch, which has only 1; set "
                "per_device_train_batch_size to at least 2"
            )

    def apply_cpu_threads(self) -> None:
        """Set torch's thread count. `accelerate launch` sets OMP_NUM_THREADS=1, which idles all cores but one."""
        if self.use_cpu:
            available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            torch.set_num_threads(self.cpu_threads or max(1, available // processes))

    def loss_options(self) -> LossOptions:
        """The numbers of the loss."""
        return LossOptions(**{option.name: getattr(self, option.name) for option in fields(LossOptions)})

    def count_views(self) -> int | None:
        """K, the number of random views of each image; None for a new one in every epoch."""
        if self.views_per_image is not None or self.teacher_cache is None:
            return self.views_per_image
        return math.ceil(self.num_train_epochs)

    def teacher_torch_dtype(self) -> torch.dtype | None:
        """`teacher_dtype` as torch knows it; None for the precision that surrounds the teacher."""
        return _DTYPES[self.teacher_dtype]
