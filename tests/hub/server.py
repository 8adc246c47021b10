"""The server itself: from a connection to the function that answers, with the faults in between."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from tests.hub import collection_routes, read_routes, write_routes
from tests.hub.messages import Answer, Refused, Request, Route, as_json
from tests.hub.store import Hub, User
from tests.loopback import Handler, listening

ROUTES: list[Route] = [*write_routes.ROUTES, *collection_routes.ROUTES, *read_routes.ROUTES]


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        request = Request(self.command, self.path, self.headers, self._read_body)
        with self.hub.lock:
            fault = next((fault for fault in self.hub.faults if fault.strikes(request)), None)
        try:
            if fault is None:
                answer: Answer | None = self._handle(request)
            else:
                answer = fault.action(self.hub, request, lambda: self._handle(request))
        except (OSError, threading.BrokenBarrierError):
            answer = None
        with self.hub.lock:
            self.hub.requests.append(f"{request.line} {'cut' if answer is None else answer.status}")
        if answer is None:
            return self.cut()
        try:
            request.body  # noqa: B018  # the next request on this connection begins behind it
            self._send(answer)
        except OSError:
            self.cut()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self, request: Request) -> Answer:
        try:
            for method, pattern, function in ROUTES:
                found = re.fullmatch(pattern, request.path)
                if found and method == ("GET" if request.method == "HEAD" else request.method):
                    _ = request.body  # before the lock: a slow client holds up nobody
                    with self.hub.lock:
                        return function(self.hub, request, *(part and unquote(part) for part in found.groups()))
            raise Refused(404, f"Sorry, this server has no {request.line}")
        except Refused as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            return as_json({"error": error.message, **error.more}, error.status, headers)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


@contextmanager
def serve_hub(**users: User) -> Iterator[Hub]:
    """Run an empty Hub on a free port of this machine.

    Args:
        **users: By token; default: `hf_jane` may write as jane, `hf_reader` only read as jane.
    """
    hub = Hub(users=users or {"hf_jane": User("jane", orgs=("lab",)), "hf_reader": User("jane", role="read")})
    with listening(type("Handler", (_Handler,), {"hub": hub}), hub.closing) as hub.url:
        yield hub
