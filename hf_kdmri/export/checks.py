"""Whether an exported file computes what PyTorch computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from hf_kdmri.export.source import SourceModel

TOLERANCE = 1e-4  # largest difference of a logit
_BATCHES = (1, 3)  # neither is the batch that the model is traced with


class ExportError(RuntimeError):
    """The exported file does not compute what the model computes; nothing was written."""


def require(packages: Sequence[str], extra: str, what: str) -> None:
    """Refuse to begin without the packages of an extra.

    Raises:
        ImportError: with the command that installs them.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ImportError(f"{what} needs {', '.join(missing)}: pip install 'hf_kdmri[{extra}]'")


def check_logits(
    source: SourceModel,
    run: Callable[[Tensor], Tensor],
    what: str,
    images: Sequence[Image.Image] = (),
    tolerance: float | None = None,
) -> float:
    """Compare a runtime with PyTorch on random inputs of batch 1 and 3, and on real images one at a time.

    Args:
        source: the model in PyTorch.
        run: pixel values (B, 3, H, W) to logits (B, C), both on the CPU.
        what: the runtime, for the message.
        images: real images, prepared by the model's own preprocessing.
        tolerance: largest difference of a logit; default `TOLERANCE`.

    Returns:
        The largest difference seen.

    Raises:
        ExportError: a logit differs by more than the tolerance, or is not finite.
    """
    allowed = TOLERANCE if tolerance is None else tolerance
    largest = 0.0
    for name, pixel_values in _inputs(source, images):
        difference = (run(pixel_values) - source.logits(pixel_values)).abs().max().item()
        if not difference <= allowed:
            raise ExportError(
                f"{what} logits differ from PyTorch's by {difference:.2e} on {name}; allowed is {allowed}. Nothing was "
                f"written. Report it with the architecture, {source.config.architecture}, and the versions of torch "
                f"and {what}"
            )
        largest = max(largest, difference)
    return largest


def _inputs(source: SourceModel, images: Sequence[Image.Image]) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for batch in _BATCHES:
        yield f"random input of batch {batch}", torch.randn(batch, *source.input_size, generator=generator)
    for index, image in enumerate(images):
        yield f"image {index}", source.prepare([image])
