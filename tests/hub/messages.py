"""Requests and answers, apart from what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class Answer:
    """Status, headers and body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


# Method, pattern of the path, and what answers, given the hub, the request and the pattern's groups.
Route = tuple[str, str, Callable[..., Answer]]


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Request:
    """What the client sent; the body is read from the connection when it is first needed."""

    method: str
    target: str
    headers: Message
    read_body: Callable[[], bytes]

    @property
    def path(self) -> str:
        """Still quoted, so that a slash within a revision is no separator."""
        return urlsplit(self.target).path

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @cached_property
    def body(self) -> bytes:
        return self.read_body()

    @property
    def token(self) -> str | None:
        value = self.headers.get("Authorization") or ""
        return value.removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def form(self) -> dict[str, list[str]]:
        """A body of JSON or of a form, as lists of texts."""
        if "json" in (self.headers.get("Content-Type") or ""):
            return {name: value if isinstance(value, list) else [value] for name, value in self.json().items()}
        return parse_qs(self.body.decode())
