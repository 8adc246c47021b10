"""Bring a batch that is spread over processes together, so that relations see all of it."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """All processes' rows, in the order of their ranks, with a gradient back to each process.

    Every process computes the loss of the whole batch on what comes back. The backward pass sums over processes what
    each of their (equal) losses says about a row, which is N times the gradient; `DistributedDataParallel` divides by
    the number of processes N. So the result is that of one process with the whole batch, with no factor of one's own.
    Gather student, teacher and labels alike, so that rows keep belonging together.

    All processes must call it, in the same order. Batch sizes may differ between them; they are exchanged at each
    call, which waits for the device.

    Args:
        tensor: (B, ...); all sizes but the first are equal on all processes.

    Returns:
        (sum of all B, ...) on every process; the tensor itself when `torch.distributed` is not initialised.

    Raises:
        ValueError: a tensor without a batch dimension.
    """
    if tensor.ndim == 0:
        raise ValueError("expected a tensor of shape (B, ...), got a scalar; a loss is reduced, not gathered")
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather  # missing where torch is built without distributed

    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    lengths = torch.cat(sizes).tolist()
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, max(lengths) - len(tensor)))
    rows = all_gather(padded.contiguous())
    return torch.cat([part[:length] for part, length in zip(rows, lengths, strict=True)])
