"""What can go wrong between the client and the Hub, at a chosen request."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hub.messages import Answer, Request, as_json

if TYPE_CHECKING:
    from tests.hub.store import Hub

# Gets the hub, the request, and a function that handles it; returns the answer, or None to cut the connection.
Action = Callable[["Hub", Request, Callable[[], Answer]], "Answer | None"]


@dataclass
class Fault:
    """Happens to requests whose "METHOD /path" holds the pattern.

    Args:
        pattern: Regular expression.
        action: What happens instead of the answer.
        skip: So many matching requests go through before.
        times: How often it happens.
    """

    pattern: str
    action: Action
    skip: int = 0
    times: int = 1

    def strikes(self, request: Request) -> bool:
        """Whether it is this request's turn."""
        if self.times <= 0 or not re.search(self.pattern, request.line):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


def refuse(status: int, message: str = "refused by the test", **headers: str) -> Action:
    """Answer with an error; names of headers have _ for -."""

    def action(hub: Hub, request: Request, handle: Callable[[], Answer]) -> Answer:
        return as_json({"error": message}, status, {name.replace("_", "-"): value for name, value in headers.items()})

    return action


def stall() -> Action:
    """Keep the connection open and silent."""

    def action(hub: Hub, request: Request, handle: Callable[[], Answer]) -> None:
        hub.closing.wait(60)

    return action


def cut() -> Action:
    """Close the connection without reading the body or answering."""

    def action(hub: Hub, request: Request, handle: Callable[[], Answer]) -> None:
        return None

    return action


def cut_after() -> Action:
    """Do what was asked, then close the connection without an answer."""

    def action(hub: Hub, request: Request, handle: Callable[[], Answer]) -> None:
        handle()

    return action


def together(barrier: threading.Barrier) -> Action:
    """Hold requests until as many as the barrier wants have come."""

    def action(hub: Hub, request: Request, handle: Callable[[], Answer]) -> Answer:
        barrier.wait(120)
        return handle()

    return action
