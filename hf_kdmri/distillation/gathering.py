"""Bring a batch that is spread over processes together, so that relations see all of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def gather_with_gradient(tensor: Tensor, *, equal_batches: bool = False) -> Tensor:
    """All processes' rows, in the order of their ranks, with a gradient back to this process's own.

    Every process computes the loss of the whole batch on what comes back, so all of them get the same loss, and each
    already knows what it says of its own rows. That, N times, is what the sum over the N processes' equal losses says
    of them, so nothing has to be sent in the backward pass; `DistributedDataParallel` then divides by N. So the result
    is that of one process with the whole batch, with no factor of one's own. Gather student, teacher and labels alike,
    so that rows keep belonging together, and give every process the same loss.

    All processes must call it, in the same order.

    Args:
        tensor: (B, ...); all sizes but the first are equal on all processes.
        equal_batches: B is known to be the same on all processes. Else the sizes are exchanged first: a second
            collective, for which the host waits.

    Returns:
        (sum of all B, ...) on every process; the tensor itself when `torch.distributed` is not initialised.

    Raises:
        ValueError: a tensor without a batch dimension.
    """
    if tensor.ndim == 0:
        raise ValueError("expected a tensor of shape (B, ...), got a scalar; a loss is reduced, not gathered")
    if not _several_processes():
        return tensor
    processes, rank = distributed.get_world_size(), distributed.get_rank()
    lengths = [len(tensor)] * processes if equal_batches else _lengths(tensor)
    padded = F.pad(tensor.detach(), (0, 0) * (tensor.ndim - 1) + (0, max(lengths) - len(tensor))).contiguous()
    rows = [torch.empty_like(padded) for _ in range(processes)]
    distributed.all_gather(rows, padded)
    parts = [part[:length] for part, length in zip(rows, lengths, strict=True)]
    parts[rank] = _TimesGradient.apply(tensor, processes)
    return torch.cat(parts)


def gather_together(tensors: Sequence[Tensor], *, equal_batches: bool = False) -> list[Tensor]:
    """`gather_with_gradient` of several tensors at the price of one: they travel side by side in one collective.

    Args:
        tensors: floating point, each (B, ...) with the same B.
        equal_batches: as `gather_with_gradient` takes it.

    Returns:
        (sum of all B, ...) of each, in its own dtype.

    Raises:
        ValueError: tensors of unequal B, or of integers, which would not survive.
    """
    if len({len(tensor) for tensor in tensors}) > 1 or not all(tensor.is_floating_point() for tensor in tensors):
        told = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise ValueError(f"expected floating point tensors (B, ...) of one B, got {told}; gather others by themselves")
    if not tensors or not _several_processes():
        return list(tensors)
    flat = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
    common = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    rows = gather_with_gradient(torch.cat([part.to(common) for part in flat], 1), equal_batches=equal_batches)
    ends = [0]
    for part in flat:
        ends.append(ends[-1] + part.shape[1])
    return [
        rows[:, start:end].reshape(-1, *tensor.shape[1:]).to(tensor.dtype)
        for tensor, (start, end) in zip(tensors, pairwise(ends), strict=True)
    ]


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _lengths(tensor: Tensor) -> list[int]:
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


class _TimesGradient(torch.autograd.Function):
    """The tensor, its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # one output
        return gradient * ctx.factor, None
