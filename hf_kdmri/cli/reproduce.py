"""`kdmri reproduce`: run a run again in a new folder and compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_kdmri.cli.exits import FAILED, USAGE, stop

EXAMPLE = "kdmri reproduce runs/demo --output_dir runs/demo-again"
_SHOWN = 12


def reproduce(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, over one fold or several.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder to run in; default: RUN-again. A run there goes on.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", help="Where the published files lie, if no longer where they lay then.")
    ] = None,
    cache_dir: Annotated[str | None, typer.Option("--cache_dir", help="Likewise the prepared data set.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far a score (0 to 1) may be off where machine, versions or data are others.")
    ] = 0.05,
) -> None:
    """Run a run again from its config.yaml and compare: to the last digit on the same machine, versions and data.

    Exit code 1 if they differ: by anything there, elsewhere by more than the tolerance.
    """
    import transformers

    from hf_kdmri.secrets import hide_in_logs_and_tracebacks
    from hf_kdmri.training.job import CannotRun
    from hf_kdmri.training.reliability.stopping import EXIT_STOPPED, Stopped, watch_for_sigterm
    from hf_kdmri.training.reproduce import compare, run_again
    from hf_kdmri.training.run_folder import RunFolder

    hide_in_logs_and_tracebacks()
    watch_for_sigterm()
    transformers.utils.logging.set_verbosity_error()
    try:
        again, state = run_again(
            run, output_dir or run.with_name(f"{run.name}-again"), data_dir=data_dir, cache_dir=cache_dir
        )
        if not state.is_main_process:
            return
        told = compare(RunFolder(run), again, tolerance=tolerance)
    except (CannotRun, ValueError, OSError) as error:
        stop(error, USAGE)
    except Stopped:
        stop("stopped by SIGTERM; the same command goes on from here", EXIT_STOPPED)
    for line in (*told.environment, *told.data):
        typer.echo(f"Differs: {line}")
    rule = (
        "machine, versions, code and data are the same: every number must be equal"
        if told.exact
        else f"not the same machine, versions, code and data: scores may differ by {told.tolerance:g}"
    )
    typer.echo(f"{told.numbers} numbers compared; {rule}. Largest difference: {told.largest:.3g}.")
    for model, same in told.weights.items():
        typer.echo(f"Weights of the {model}: {'the same, byte for byte' if same else 'others'}")
    for number, (name, (before, now)) in enumerate(told.differences.items()):
        if number == _SHOWN:
            typer.echo(f"  … and {len(told.differences) - _SHOWN} more")
            break
        typer.echo(f"  {name}: {before} then, {now} now")
    typer.echo("Not reproduced." if told.differences else f"Reproduced in {again.path}.")
    sys.stdout.flush()
    if told.differences:
        raise typer.Exit(FAILED)
