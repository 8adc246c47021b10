"""The command line `kdmri`: one module for each command.

Results go to standard output, everything else to standard error. Heavy libraries are imported by the command that needs
them, so that `kdmri --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_kdmri import __version__
from hf_kdmri.cli import evaluate, export, pack, predict, push, reproduce, runs, serve, space
from hf_kdmri.cli.exits import Command

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Use, check, export, publish a small brain MRI classifier. [b]Research use only, not a medical device.[/b]",
    epilog="Exit codes: 0 all went well; 1 something failed, named on standard error; 2 wrong usage.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hf_kdmri {__version__}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


for command, example in (
    (predict.predict, predict.EXAMPLE),
    (evaluate.evaluate, evaluate.EXAMPLE),
    (runs.report, runs.REPORT_EXAMPLE),
    (runs.compare, runs.COMPARE_EXAMPLE),
    (reproduce.reproduce, reproduce.EXAMPLE),
    (export.export, export.EXAMPLE),
    (serve.serve, serve.EXAMPLE),
    (push.push, push.EXAMPLE),
    (pack.pack, pack.EXAMPLE),
    (space.space, space.EXAMPLE),
):
    app.command(epilog=f"Example: {example}", cls=Command)(command)
