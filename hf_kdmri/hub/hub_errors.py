"""What the Hub's refusals mean and what to do about them; how long to wait for it; names and tokens."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils._http import default_client_factory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TIMEOUT = 120.0  # seconds without a byte; a commit of many files may take the Hub a minute
LONGEST_WAIT = 90  # seconds; where the Hub asks for a longer pause, the push ends and says so
_PAUSES = 3
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_REASONS = {
    401: "the Hub does not know who you are: run `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "your token may not write there: use a token with write access, and a name under your own user or group",
    404: "there is no such user or group, or your token cannot see it: check the part before the slash",
    409: "another push to this repository is under way or won: look at its history, then push again",
    412: "another push to this repository won meanwhile: look at its history, then push again",
    413: "a file is too large for the Hub: look at the sizes with --dry-run",
    429: "too many requests: wait a few minutes and push again",
}


class PublishError(RuntimeError):
    """A push did not go through; the message says why and what to do."""


@contextmanager
def push_errors(what: str, api: HfApi) -> Iterator[None]:
    """Turn whatever the Hub's client raises inside into a `PublishError` that says what to do.

    Args:
        what: What was tried, for the message.
        api: The client, whose endpoint is named and whose token is kept out of the message.
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as error:  # hf_xet and the upload's threads wrap errors in types of their own
        cause = _root(error)
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code if cause.response is not None else 0
            reason = _REASONS.get(status, "the Hub answered with an error; push again later, nothing is half done")
            message = f"{what} failed (HTTP {status}): {reason}. Hub: {cause}"
        elif isinstance(cause, (HTTPError, OSError, OfflineModeIsEnabled)):
            message = (
                f"{what} failed: {api.endpoint} cannot be reached ({str(cause) or type(cause).__name__}). Check the "
                f"network, HF_ENDPOINT and HF_HUB_OFFLINE, then push again; what is on this machine stays as it is."
            )
        else:
            message = f"{what} failed: {error}"
        raise PublishError(without_secrets(message, api)) from None  # the chain's messages may hold what this one hides


def _root(error: BaseException) -> BaseException:
    """What lies behind the client's "Error while uploading"."""
    while not isinstance(error, (HTTPError, HfHubHTTPError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def without_secrets(text: str, api: HfApi) -> str:
    """The text without the token, should a server or proxy have repeated it, and without signatures of addresses."""
    for token in (api.token, get_token()):
        if isinstance(token, str) and token:
            text = text.replace(token, "<token>")
    return _QUERY.sub(r"\1", text)


def patiently(ask: Callable[[], Result]) -> Result:
    """Ask, and where the Hub answers 429 with Retry-After, wait and ask again.

    The client does this by itself for uploads only.

    Raises:
        HfHubHTTPError: any other error, a pause of more than `LONGEST_WAIT` seconds, or too many pauses.
    """
    for _ in range(_PAUSES):
        try:
            return ask()
        except HfHubHTTPError as error:
            seconds = _retry_after(error)
            if seconds is None or seconds > LONGEST_WAIT:
                raise
            logger.warning("the Hub asks for a pause of %d s", seconds)
            time.sleep(seconds)
    return ask()


def _retry_after(error: HfHubHTTPError) -> int | None:
    if error.response is None or error.response.status_code != 429:
        return None
    value = error.response.headers.get("Retry-After", "")
    return int(value) if value.isdigit() else None


@contextmanager
def impatient_client(seconds: float = TIMEOUT) -> Iterator[None]:
    """Let no request of the Hub's client inside wait longer than this without a byte; by itself it waits for ever.

    Args:
        seconds: Without a byte.
    """

    def factory() -> httpx2.Client:
        client = default_client_factory()
        client.timeout = httpx2.Timeout(seconds, connect=min(seconds, 15))
        return client

    set_client_factory(factory)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def check_login(what: str, token: str | None = None) -> None:
    """Refuse to begin what could not be pushed.

    Args:
        what: What is to be pushed, for the message.
        token: Given for this push; default: the one of `hf auth login` or HF_TOKEN.

    Raises:
        PublishError: no token.
    """
    if (token or get_token()) is None:
        raise PublishError(f"{what}: not logged in; run `hf auth login`, or set HF_TOKEN to a write token")


def check_repo_id(repo_id: str, example: str = "jane/kdmri-student") -> None:
    """Refuse what is not of the form `user/name`.

    Raises:
        ValueError: it has another form.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no repository name; expected user/name, for instance {example}")
