"""A loopback web server whose answers a test scripts, one after the other."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.loopback import Handler, listening


@dataclass
class FileServer:
    """What the server has, does next and has seen.

    Attributes:
        files: Content by path.
        script: Answers to the next GETs, each used once; afterwards `plain`.
        always: The answer when the script is used up.
        requests: Path and Range header of every GET.
        sent: Bytes of content that were sent.
        closing: Set at the end, so that no answer stalls the test.
    """

    files: dict[str, bytes]
    url: str = ""
    script: list[Answer] = field(default_factory=list)
    always: Answer | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(Handler):
    server_state: FileServer

    def do_GET(self) -> None:
        state = self.server_state
        state.requests.append((self.path, self.headers.get("Range")))
        answer = state.script.pop(0) if state.script else state.always or plain()
        answer(self, state)

    do_POST = do_GET

    def content(self) -> bytes | None:
        return self.server_state.files.get(self.path)

    def send(self, block: bytes) -> None:
        self.server_state.sent += len(block)  # before the client can see it and the test look
        self.wfile.write(block)


Answer = Callable[[_Handler, FileServer], None]


def plain(
    *,
    ranges: bool = True,
    stop_after: int | None = None,
    reset: bool = False,
    stall: bool = False,
    change: Callable[[bytes], bytes] = bytes,
    length: bool = True,
) -> Answer:
    """Send the file or, if asked, its rest.

    Args:
        ranges: Heed the Range header.
        stop_after: Close after this many bytes.
        reset: Close so that the client sees a reset connection.
        stall: Keep the connection open and silent instead of closing.
        change: Applied to the whole content.
        length: Send Content-Length.
    """

    def answer(handler: _Handler, state: FileServer) -> None:
        data = handler.content()
        if data is None:
            return status(404)(handler, state)
        data = change(data)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if asked and ranges:
            first = int(asked[1])
            if first >= len(data):
                return status(416, {"Content-Range": f"bytes */{len(data)}"})(handler, state)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            data = data[first:]
        else:
            handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.send(data[:stop_after])
        if stall:
            handler.wfile.flush()
            state.closing.wait(30)
        if reset:
            handler.cut()
        return None

    return answer


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    """Answer with a status and no content."""

    def answer(handler: _Handler, _: FileServer) -> None:
        handler.send_response(code)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Run the server on a free port of this machine."""
    state = FileServer(files)
    handler = type("Handler", (_Handler,), {"server_state": state})
    with listening(handler, state.closing) as state.url:
        yield state
