"""Whether torch.compile works here, asked before anything trains."""

from __future__ import annotations

from functools import cache

import torch
from torch._dynamo.exc import TorchDynamoException

from hf_kdmri.training.data_options import OptionError


@cache
def check_compiler(device: torch.device) -> None:
    """Compile next to nothing for a device, which takes seconds, once in a process.

    Args:
        device: where it is to run.

    Raises:
        OptionError: that fails, most likely for want of a C++ compiler.
    """
    try:
        torch.compile(lambda numbers: numbers * 2 + 1, fullgraph=True)(torch.ones(3, device=device))
    except TorchDynamoException as error:
        raise OptionError(
            f"compile_teacher: torch.compile does not work here: {str(error).splitlines()[0]} Install a C++ compiler "
            "(on Debian: apt install g++), or leave compile_teacher out; training gives the same without, more slowly"
        ) from error
