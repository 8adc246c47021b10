"""`kdmri space`: a static page that runs a student in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.classifying import SHIPPED, Model, check_model, model_or_shipped
from hf_kdmri.cli.exits import USAGE, stop, tell

EXAMPLE = "kdmri space page --model runs/demo/student && python -m http.server --directory page"


def space(
    out: Annotated[Path, typer.Argument(help="New or empty folder, or one that holds the page already.")],
    model: Model = SHIPPED,
    name: Annotated[str | None, typer.Option(help="What the page calls the model. Default: as its card does.")] = None,
    card: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of the model card. Default: its page on the Hub, if any.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Below this highest probability the page says: not sure enough.")
    ] = 0.5,
) -> None:
    """Write a folder that any web server, or a static Space, can show: the model runs in the visitor's browser."""
    model = model_or_shipped(model)
    tell(f"writing the page with {model} to {out} …")
    check_model(model)
    from hf_kdmri.export import ExportError
    from hf_kdmri.hub.space_page import write_space

    try:
        folder = write_space(out, model, name=name, card=card, threshold=threshold)
    except (FileExistsError, ValueError) as error:
        stop(error, USAGE)
    except (ImportError, ExportError, OSError) as error:
        stop(error)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder} ({total:,} bytes). Look at it: python -m http.server --directory {folder}")
