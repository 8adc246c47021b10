"""DeepSpeed's ZeRO-1 and 2, which divide optimiser state and gradients among the processes.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, arXiv:1910.02054.
ZeRO-3, which would divide the weights as well, is refused (`hf_kdmri.training.sharding`).
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from hf_kdmri.training.arguments import DistillationTrainingArguments


def asks_for_deepspeed(args: DistillationTrainingArguments) -> bool:
    """Whether the arguments or accelerate's launcher ask for DeepSpeed."""
    return bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def check_deepspeed(args: DistillationTrainingArguments) -> None:
    """Look at what DeepSpeed needs and cannot do, before it is set up.

    Raises:
        ValueError: it is not installed; there is no GPU, and `DS_ACCELERATOR=cpu` does not say that the CPU is meant;
            or compile_teacher or ema_decay is asked for.
    """
    if args.ema_decay:
        raise ValueError("ema_decay needs the whole student on every process; leave it out with DeepSpeed")
    if args.compile_teacher:
        raise ValueError("compile_teacher does not work with DeepSpeed, which holds the weights; leave it out")
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("DeepSpeed is not installed: pip install deepspeed, or launch without it (docs/scale.md)")
    if not torch.accelerator.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise ValueError(
            "DeepSpeed needs a GPU, and there is none; launch without it, or set DS_ACCELERATOR=cpu to try it on the "
            "CPU (docs/scale.md)"
        )


def keep_weights_in_float32(args: DistillationTrainingArguments) -> None:
    """Have DeepSpeed compute in bfloat16 under torch's autocast, as everything else does here.

    Its own bfloat16 mode rounds all weights and buffers: those of the teacher, the averages of batch normalisation, and
    the student that is saved. It would also need a model that casts its own inputs.

    Raises:
        ValueError: fp16 is asked for, by the arguments or by accelerate's configuration.
    """
    if args.deepspeed_plugin is None:
        return
    if args.mixed_precision == "fp16":
        raise ValueError("fp16 does not work with DeepSpeed here; take bf16 or full precision (docs/scale.md)")
    if args.bf16:
        args.deepspeed_plugin.deepspeed_config |= {
            "bf16": {},  # off; said aloud, transformers takes it for a contradiction
            # No module's gradients travel in bfloat16.
            "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }


def use_plain_layout(model: nn.Module) -> None:
    """Lay out weights as DeepSpeed can send them: it looks at their bytes in order, which channels-last has not."""
    for value in [*model.parameters(), *model.buffers()]:
        # `contiguous` leaves channels-last weights of one input channel alone.
        value.data = value.data.clone(memory_format=torch.contiguous_format)
