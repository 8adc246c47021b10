"""`kdmri push`: a finished run, or a model folder, to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import USAGE, stop, tell
from hf_kdmri.wording import counted

EXAMPLE = "kdmri push runs/figshare --to jane/kdmri-student --private --dry-run"

_CARD = "Card: README.md was checked by the Hub's rules, no fault found."
_NO_CARD = "Card: there is no README.md, so the model has none."


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Run folder (student, teacher, results), or model folder.")
    ],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent; needs no account.")] = False,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="Tag the commits as a release, e.g. v1.0.")] = None,
    teacher: Annotated[bool, typer.Option(help="Of a run: the teacher as USER/NAME-teacher.")] = True,
    onnx: Annotated[bool, typer.Option(help="Of a run: onnx/model.onnx, exported if it is not there.")] = True,
    collection: Annotated[bool, typer.Option(help="Of a run: a collection of student, teacher and data set.")] = True,
    dataset: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Of a run: its data set on the Hub, to be linked.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the Hub to say anything.")] = 120,
) -> None:
    """Publish a student, one commit per repository. Log in first with `hf auth login`, or set HF_TOKEN.

    Repeat the same command after a failure: what is there is not sent again.
    """
    tell(f"gathering {folder} {'(dry run) ' if dry_run else ''}…")
    from hf_kdmri.hub.hub_errors import PublishError, check_login
    from hf_kdmri.hub.publish import find_model_folder, push_folder
    from hf_kdmri.hub.release import is_run, plan_release, push_release

    try:
        if not is_run(folder):
            push = push_folder(
                find_model_folder(folder), to, private=private, dry_run=dry_run, tag=tag, timeout=timeout
            )
            list_files(push.repo_id, push.files)
            typer.echo(_CARD if any(name == "README.md" for name, _ in push.files) else _NO_CARD)
            _tell(push.repo_id, push.url, push.sent)
            return
        if not dry_run:
            check_login(f"push to {to}")  # before the export
        release = plan_release(folder, to, teacher=teacher, onnx=onnx, dataset_id=dataset)
        for plan in release.repositories:
            list_files(plan.repo_id, plan.sizes)
        if "README.md" in release.student.files:
            typer.echo(_CARD)
        for note in release.notes:
            typer.echo(f"Note: {note}")
        if dry_run:
            items = [plan.repo_id for plan in release.repositories] + [release.dataset_id or "no data set"]
            if collection:
                typer.echo(f"Collection “{release.collection_title}”: {', '.join(reversed(items))}")
            typer.echo("Dry run: nothing was sent.")
            return
        released = push_release(release, private=private, tag=tag, collection=collection, timeout=timeout)
        for repository in released.repositories:
            _tell(repository.plan.repo_id, repository.url, repository.sent)
        if released.collection_url:
            typer.echo(f"Collection: {released.collection_url}")
    except PublishError as error:
        stop(error)
    except (OSError, ValueError) as error:
        stop(error, USAGE)


def list_files(where: str, files: Sequence[tuple[str, int]]) -> None:
    """Print a repository's or folder's files with their sizes in bytes, and the sum."""
    typer.echo(f"{where}:")
    for name, size in files:
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"{sum(size for _, size in files):>14,}  bytes in {counted(len(files), 'file')}")


def _tell(repo_id: str, url: str | None, sent: Sequence[str] | None) -> None:
    if url is None:
        typer.echo(f"Dry run: nothing was sent to {repo_id}.")
    elif not sent:
        typer.echo(f"{repo_id}: all files are there already, {url}")
    else:
        typer.echo(f"{repo_id}: {counted(len(sent), 'file')} sent, {url}")
