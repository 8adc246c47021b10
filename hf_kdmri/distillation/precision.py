"""What every loss does to its inputs: full precision on both sides, no gradient on the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64 (which gradient checks need)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def teacher_side(tensor: Tensor) -> Tensor:
    """The tensor in full precision and cut off from the teacher's graph.

    Autograd refuses to save a tensor that was made in inference mode, so such a tensor is copied.
    """
    detached = at_least_float32(tensor.detach())
    if torch.compiler.is_compiling():  # the question would break the graph, and inference mode does not reach into one
        return detached
    return detached.clone() if detached.is_inference() else detached
