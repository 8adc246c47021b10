"""What all commands say on standard error: what is begun, and errors in one line, with exit codes."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from hf_kdmri.secrets import hide_secrets

FAILED, USAGE = 1, 2


class Command(TyperCommand):
    """A command whose usage errors say what is wrong and not which library found out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and take pydantic's words off the message of a wrong choice.

        Raises:
            BadParameter: a value that the option does not take.
        """
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def tell(message: str) -> None:
    """Say on standard error what is begun, before libraries are imported that take seconds."""
    typer.echo(f"kdmri: {hide_secrets(message)}", err=True)


def stop(message: object, code: int = FAILED) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    typer.echo(f"kdmri: {hide_secrets(str(message))}", err=True)
    raise typer.Exit(code)
