"""From the host to an accelerator without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor from the host to a device; a copy to an accelerator goes on while the host does.

    Args:
        tensor: on the CPU.
        device: where it is wanted.

    Returns:
        The tensor there; on the CPU, itself.
    """
    if device.type == "cpu":
        return tensor
    # From pageable memory the driver copies only after the device has come that far, and the host waits for it.
    return tensor.pin_memory().to(device, non_blocking=True)
