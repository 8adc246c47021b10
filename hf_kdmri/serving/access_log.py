"""One line for each request: when, from where, what came of it, how much and how long; nothing of the image."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_kdmri.wording import counted

logger = logging.getLogger("hf_kdmri.serving")


class AccessLog:
    """ASGI middleware that writes to the logger `hf_kdmri.serving`.

    Args:
        app: What is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log it once it is answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, received = time.perf_counter(), 500, 0

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def watching_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counting_receive, watching_send)
        finally:
            client = scope["client"][0] if scope.get("client") else "-"
            path = scope.get("raw_path", b"").decode("latin-1")[:100]  # as sent: no control characters
            inputs = f" {counted(scope['kdmri.inputs'], 'input')}" if "kdmri.inputs" in scope else ""
            took = 1000 * (time.perf_counter() - start)
            logger.info("%s %s %s %d%s %d bytes %.1f ms", client, scope["method"], path, status, inputs, received, took)
