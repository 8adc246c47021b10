"""Tokens stay out of logs, tracebacks, commands and files."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

HIDDEN = "<hidden>"
# The Hub's and other services' own forms; shorter words that only begin alike (`hf_kdmri`) stay.
_FORMS = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_OPTION = re.compile(r"--[a-z_-]*(?:token|password|api_key|api-key|secret)", re.IGNORECASE)
_SHORTEST = 6  # a shorter value would hide parts of ordinary words


def hide_secrets(text: str) -> str:
    """Replace every token in a text by `<hidden>`.

    Hidden are words in the form of a token of the Hub or of GitHub, and the values of all environment variables whose
    name speaks of a token, secret, password, key or credential.

    Example:
        >>> hide_secrets("push with hf_abcdefghijklmnopqrstuvwxyz failed")
        'push with <hidden> failed'
    """
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST and not Path(value).exists():  # HF_TOKEN_PATH is no token
            text = text.replace(value, HIDDEN)
    return _FORMS.sub(HIDDEN, text)


def hide_in_command(words: Sequence[str]) -> list[str]:
    """Replace tokens in a command line, and the values of options such as `--hub_token`, whatever their form.

    Example:
        >>> hide_in_command(["train_kd.py", "--hub_token", "x", "--seed", "1", "--hub-token=y"])
        ['train_kd.py', '--hub_token', '<hidden>', '--seed', '1', '--hub-token=<hidden>']
    """
    shown, value_follows = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        named = _OPTION.fullmatch(option) is not None
        if value_follows and not word.startswith("--"):
            shown.append(HIDDEN)
        else:
            shown.append(f"{option}={HIDDEN}" if named and equals else hide_secrets(word))
        value_follows = named and not equals
    return shown


def hide_in_logs_and_tracebacks() -> None:
    """From now on, no log record of any library and no traceback of this process shows a token."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def record(*args: object, **kwargs: object) -> logging.LogRecord:
        made = make(*args, **kwargs)
        try:
            message = made.getMessage()
        except (TypeError, ValueError):
            return made  # arguments that do not fit their format: logging reports that itself
        if (hidden := hide_secrets(message)) != message:
            made.msg, made.args = hidden, ()
        return made

    record.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    sys.excepthook = show_error


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without tokens."""
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))
