"""How the command line ends: exit codes, and errors in one line."""

from __future__ import annotations

from typing import NoReturn

import typer

from hf_kdmri.secrets import hide_secrets

FAILED, USAGE = 1, 2


def stop(message: object, code: int = FAILED) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    typer.echo(f"kdmri: {hide_secrets(str(message))}", err=True)
    raise typer.Exit(code)
