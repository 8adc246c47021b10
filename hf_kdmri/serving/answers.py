"""What a server says: JSON that is always valid, and refusals with a reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

_DRAIN_SECONDS = 2.0
_DRAIN_BYTES = 2**24


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        reason: What was wrong and what to do; goes to the client.
        headers: Further headers.
        unread: Part of the request has not been read, so the connection ends with the answer.
    """

    def __init__(
        self, status: int, reason: str, *, headers: Mapping[str, str] | None = None, unread: bool = False
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers, self.unread = status, reason, headers, unread

    def response(self) -> JSONResponse:
        """`{"error": reason}`."""
        kind = LastJSON if self.unread else SafeJSON
        return kind({"error": self.reason}, self.status, self.headers)


class SafeJSON(JSONResponse):
    """JSON in ASCII: whatever characters a label has, lone surrogates too, the answer is valid; NaN is an error."""

    def render(self, content: Any) -> bytes:
        """Encode."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class LastJSON(SafeJSON):
    """The last answer on a connection whose client may still be sending.

    If the connection were closed at once, the client would be told of a reset and might never see the answer. So what
    it sends is thrown away for a while, of limited length, until it has read the answer and stops.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, drain, close."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            await asyncio.wait_for(_drain(receive), _DRAIN_SECONDS)
        except asyncio.TimeoutError:  # slow, and now cut off
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    dropped = 0
    while dropped < _DRAIN_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
