"""`kdmri push`: a finished student to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import USAGE, stop

EXAMPLE = "kdmri push runs/figshare --to jane/kdmri-student --private --dry-run"


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Run folder (its student/ is sent) or model folder.")
    ],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent; needs no account.")] = False,
) -> None:
    """Publish a student in one commit. Log in first with `hf auth login`, or set HF_TOKEN."""
    from hf_kdmri.hub.publish import PublishError, find_model_folder, push_folder

    try:
        result = push_folder(find_model_folder(folder), to, private=private, dry_run=dry_run)
    except (OSError, ValueError) as error:
        stop(error, USAGE)
    except PublishError as error:
        stop(error)
    for name, size in result.files:
        typer.echo(f"{size:>14,}  {name}")
    verb = "would be sent" if result.url is None else "sent"
    typer.echo(f"{result.total_bytes:>14,}  bytes in {len(result.files)} files {verb} to {result.repo_id}")
    if result.url:
        typer.echo(result.url)
