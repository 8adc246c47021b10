"""Numbers that go wrong while a model trains: a loss or gradient that is not finite stops it, a spike is told."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 100  # steps whose median a loss is compared with
FEWEST_STEPS = 20  # before that, losses fall too fast to have a usual height
GRADIENT = "gradient"
_SHOWN_IMAGES = 64


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or no number; the message names the term, the step and the images."""


@dataclass
class _Step:
    number: int
    names: Sequence[str]
    values: Tensor  # of each term times its λ, on the CPU; being copied while `copied` has not happened
    index: Tensor | None
    copied: torch.cuda.Event | None


class NumberWatch:
    """Look at the loss of every step.

    On a CPU this happens in the step itself, before the backward pass. On a GPU the numbers are copied aside and looked
    at when they have come, at the latest when the next step's loss is on its way and so before the next optimiser step:
    what the host then waits for lies behind work that is still queued, so the GPU never runs dry. Before a checkpoint
    all are waited for. Each process looks at its own batches.

    Args:
        names_of: the data set's name of each image at a position, for messages.
        spike_factor: a loss above this many times the median of the last 100 is a spike; 0 looks for none.
        on_spike: called with step, loss, median and the images.
    """

    def __init__(
        self,
        names_of: Callable[[list[int]], list[Any]],
        *,
        spike_factor: float,
        on_spike: Callable[[int, float, float, list[Any]], None],
    ) -> None:
        self.names_of, self.spike_factor, self.on_spike = names_of, spike_factor, on_spike
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self._pending: deque[_Step] = deque()

    def look(self, step: int, weighted: Mapping[str, Tensor], index: Tensor | None) -> None:
        """Look at one batch.

        Args:
            step: counted from 1.
            weighted: each term of the loss times its λ, scalars.
            index: (B,) positions of the images in the data set, or None where they are not known.

        Raises:
            NotFiniteError: a term of this batch or, on a GPU, of the step before.
        """
        values, copied = torch.stack([term.detach().float() for term in weighted.values()]), None
        if values.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            index = None if index is None else index.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append(_Step(step, tuple(weighted), values.cpu(), index, copied))
        self._judge(wait_for_all=False)

    def look_at_gradient(self, step: int, norm: Tensor, index: Tensor | None) -> None:
        """Look at the norm of a step's gradient on a GPU, as `look` does at its loss."""
        self.look(step, {GRADIENT: norm}, index)

    def settle(self) -> None:
        """Look at everything that is still on its way; to be called before weights are kept.

        Raises:
            NotFiniteError: as `look`.
        """
        self._judge(wait_for_all=True)

    def _judge(self, *, wait_for_all: bool) -> None:
        while self._pending:
            oldest = self._pending[0]
            if oldest.copied is not None and not oldest.copied.query():
                if not wait_for_all and oldest.number == self._pending[-1].number:
                    return
                oldest.copied.synchronize()
            self._judge_one(self._pending.popleft())

    def _judge_one(self, step: _Step) -> None:
        values = step.values.tolist()
        loss = sum(values)
        if not math.isfinite(loss):
            where = f"at step {step.number}, on {self.describe(step.index)}"
            if GRADIENT in step.names:
                raise NotFiniteError(f"the gradient is not finite (its norm is {loss}) {where}")
            wrong = {name: value for name, value in zip(step.names, values, strict=True) if not math.isfinite(value)}
            what = " and ".join(f"the term {name} (times its λ) is {value}" for name, value in wrong.items())
            raise NotFiniteError(f"{what or f'the loss is {loss}'} {where}")
        if GRADIENT in step.names:
            return
        if self.spike_factor and len(self.recent) >= FEWEST_STEPS:
            median = statistics.median(self.recent)
            if loss > self.spike_factor * median > 0:
                images = [] if step.index is None else self.names_of(step.index.tolist())
                self.on_spike(step.number, loss, median, images)
        self.recent.append(loss)

    def describe(self, index: Tensor | None) -> str:
        """Name the images at some positions in a message."""
        return "images whose numbers are not known" if index is None else list_images(self.names_of(index.tolist()))


def list_images(names: Sequence[Any]) -> str:
    """Name the images of a batch in a message."""
    rest = f" and {len(names) - _SHOWN_IMAGES} more" if len(names) > _SHOWN_IMAGES else ""
    return f"images {', '.join(map(str, names[:_SHOWN_IMAGES]))}{rest}"


def terms_with_bad_gradients(
    weighted: Callable[[], Mapping[str, Tensor]], parameters: Sequence[nn.Parameter]
) -> list[str]:
    """Find the terms whose gradient alone is not finite.

    Args:
        weighted: runs the models again and gives each term times its λ.
        parameters: which train.
    """
    terms = weighted()
    bad = []
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None):
            bad.append(name)
    return bad
