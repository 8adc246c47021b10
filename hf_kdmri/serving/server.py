"""uvicorn with what it leaves open: one clear word on a port in use, slow heads cut off, exit code 0 on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol


class CannotListen(RuntimeError):
    """The address cannot be used; the message says why and what to do."""


def reserve(host: str, port: int) -> socket.socket:
    """Bind a socket without listening yet, so that nobody connects before the model is loaded.

    Args:
        host: Name or address of this machine.
        port: 0 for any that is free.

    Raises:
        CannotListen: in use, not allowed, or not this machine's.
    """
    reasons = {
        errno.EADDRINUSE: "is in use; stop what uses it, or choose another --port (0 takes any that is free)",
        errno.EACCES: "may not be used by you; choose a --port from 1024 on",
        errno.EADDRNOTAVAIL: "is no address of this machine; give --host 127.0.0.1, or 0.0.0.0 for all of them",
    }
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere the option lets two servers share a port
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(address)
        except OSError:
            reserved.close()
            raise
    except socket.gaierror as error:
        raise CannotListen(f"the host {host!r} is not known ({error.strerror}); give --host 127.0.0.1") from error
    except OSError as error:
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise CannotListen(f"port {port} of {host} {reason}") from error
    return reserved


def make_server(app: FastAPI, timeout: float, ready: Callable[[str], None] = lambda address: None) -> Server:
    """Set up a server; `listen` runs it.

    Args:
        app: The application.
        timeout: Seconds that a request's head may take, and that requests in progress have at the end.
        ready: Called with the address once connections are taken.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(timeout),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(timeout),
    )
    return Server(config, ready)


class Server(uvicorn.Server):
    """A server that says when it is ready and that ends by itself on a signal.

    Args:
        config: uvicorn's.
        ready: Called with the address once connections are taken.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self.ready = ready

    def listen(self, reserved: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT; then take nothing new, finish what is in progress, and return.

        Args:
            reserved: From `reserve`; a port that somebody else listens on by now is refused.

        Raises:
            CannotListen: as in `reserve`.
        """
        host, port = reserved.getsockname()[:2]
        try:
            self.run(sockets=[reserved])
        except OSError as error:
            raise CannotListen(f"port {port} of {host} cannot be listened on ({error.strerror})") from error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for reserved in sockets or ():
            host, port = reserved.getsockname()[:2]
            self.ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; uvicorn would raise them again at the end, and the exit code would tell of a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sign: signal.signal(sign, self.handle_exit) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)


def _protocol(head_timeout: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, which waits for ever for a request's head, with an end to its patience."""

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start the clock where a head is awaited, if it does not run; stop it where one is complete."""
            if self.conn.their_state is not h11.IDLE:
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(head_timeout, self.transport.close)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimedProtocol
