#!/usr/bin/env python
"""Teach a small model what a large one knows of brain MRI, or of images of yours: from files to a model folder.

accelerate launch train_kd.py --config configs/demo.yaml
accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --fold 0
accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --folds all
accelerate launch train_kd.py --dataset_name MY_FOLDER --group_column patient --output_dir runs/mine
accelerate launch train_kd.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from accelerate import PartialState

from hf_kdmri.evaluation import print_results
from hf_kdmri.hub import PublishError, plan_release, push_release
from hf_kdmri.secrets import hide_in_logs_and_tracebacks, hide_secrets, show_error
from hf_kdmri.training.job import CannotRun, run_job
from hf_kdmri.training.options import OptionError, RunOptions, parse_options
from hf_kdmri.training.reliability.stopping import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Stopped,
    ignore_sigterm,
    watch_for_sigterm,
)
from hf_kdmri.training.report.outcome import results_title
from hf_kdmri.training.run_folder import RunFolder


def main() -> None:
    """Run whatever the run folder does not hold yet, and end with one of the exit codes that `--help` lists."""
    hide_in_logs_and_tracebacks()
    watch_for_sigterm()
    try:
        run_and_tell()
    except (OptionError, CannotRun) as error:
        sys.exit(f"train_kd.py: error: {hide_secrets(str(error))}")
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Stopped:
        ignore_sigterm()  # a launcher may send a second one to a process of a group that had the first
        print("\nStopped by SIGTERM. The same command goes on from here.", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except Exception as error:
        ignore_sigterm()
        show_error(type(error), error, error.__traceback__)
        sys.exit("train_kd.py: stopped by the error above; the same command goes on from the last whole checkpoint")


def run_and_tell() -> None:
    """Read the options, run, print what came of it, and push if asked to."""
    options = parse_options()
    # After the options: transformers takes a quiet logger for a wish to have no progress bars.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # its own, for small files; training keeps its bar
    options.training.apply_cpu_threads()
    state = PartialState(cpu=options.training.use_cpu)
    run = RunFolder(Path(options.training.output_dir or "runs/unnamed"))
    run_job(options, run, state)
    show_outcome(run, state)
    if options.training.push_to_hub and state.is_main_process:
        push(run, options)


def push(run: RunFolder, options: RunOptions) -> None:
    """Send the finished run to the Hub, as `kdmri push RUN --to USER/NAME` does."""
    try:
        release = plan_release(run.path, options.training.hub_model_id or "")
        released = push_release(
            release, private=bool(options.training.hub_private_repo), token=options.training.hub_token
        )
    except (PublishError, OSError, ValueError) as error:
        sys.exit(f"train_kd.py: the run is finished in {run.path}, but not pushed whole: {hide_secrets(str(error))}")
    for note in release.notes:
        print(f"Note: {note}")
    for repository in released.repositories:
        print(f"{'On the Hub already' if repository.was_there else 'Pushed to'}: {repository.url}")
    print(f"Collection: {released.collection_url}")


def show_outcome(run: RunFolder, state: PartialState) -> None:
    """Print the table, and where everything lies."""
    metrics = run.read_metrics()
    if state.is_main_process and metrics is not None:
        facts = metrics["run"]
        print_results(list(metrics["models"].values()), title=results_title(facts))
        if "figures" in facts:  # one fold of several has its report in the folder above
            print("Figures:", *facts["figures"], sep="\n  ")
            print(f"Report: {run.path / 'report.html'}")
        students = [run.fold(fold) for fold in facts["folds"]] if facts.get("folds") else [run]
        for student in students:
            print(f"Student: {student.model_folder('student')}")
        print("(a student's card is its README.md; any transformers pipeline loads the folder)")


if __name__ == "__main__":
    main()
