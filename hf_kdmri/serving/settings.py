"""Limits of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ServeSettings:
    """What a server takes in at most.

    Args:
        max_body: Bytes of one request.
        timeout: Seconds that a client may take to send a request's head, as many again for its body, and as many again
            that the server may take to answer.
        concurrency: Requests in progress, from their first byte to the answer; more are sent away.
        batch_size: Images that go through the model at once.
        max_images: Images in one request.

    Raises:
        ValueError: A limit is not above 0.
    """

    max_body: int = 20_000_000
    timeout: float = 30.0
    concurrency: int = 32
    batch_size: int = 8
    max_images: int = 64

    def __post_init__(self) -> None:
        """Refuse wrong limits."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0")
