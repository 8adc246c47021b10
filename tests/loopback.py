"""A web server on a free port of this machine, for as long as a test needs it."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Keep quiet about clients that went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Silent, and able to break off."""

    def log_message(self, *_: object) -> None:
        pass

    def cut(self) -> None:
        """Let the client see a reset connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def listening(handler: type[Handler], closing: threading.Event) -> Iterator[str]:
    """Run a server and give its address.

    Args:
        handler: Of requests.
        closing: Set at the end, so that no answer that waits stalls the test.
    """
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
