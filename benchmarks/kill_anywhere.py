#!/usr/bin/env python
"""Kill a short training run at random points, start the same command again, and compare with the undisturbed run.

    OMP_NUM_THREADS=1 python benchmarks/kill_anywhere.py --count 50 --seed 0 --json kill_anywhere.json

The run is train_kd.py on generated slices: data, teacher, distilled student, test, report. Every start is a fork of
this process, which has imported everything once; those on two processes are started with torchrun. faults.py lists the
faults. Afterwards every `checkpoint-N` must be whole; the same command must end well; weights must be the undisturbed
run's byte for byte, and metrics, history and test probabilities the same to the last digit (what `kdmri reproduce`
compares).

benchmarks/README.md holds the table of one run. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from faults import KINDS, TWO_PROCESSES, Fault, draw_fault
from starts import Start, import_train_kd, start
from tiny_run import TINY

from hf_kdmri.training.reliability.checkpoints import checkpoints_in, damage_of
from hf_kdmri.training.reproduce import compare
from hf_kdmri.training.run_folder import RunFolder

_MOST_STARTS = 3  # one is enough; more are counted as a finding


def main() -> int:
    """Kill, start again, compare, and print a table."""
    arguments = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="kill_anywhere-", dir=arguments.folder))
    try:
        result = run_all(folder, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["findings"] else 0


def parse_arguments() -> argparse.Namespace:
    """How many faults, which, and where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="faults (default: all, in turn)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the runs and their logs there")
    return parser.parse_args()


def run_all(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the undisturbed runs, then one killed run for each fault.

    Returns:
        `rows`, one for each fault, and `findings`, those that did not go as they must.
    """
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    import_train_kd()
    draw, rows = random.Random(arguments.seed), []
    kinds = [arguments.kinds[number % len(arguments.kinds)] for number in range(arguments.count)]
    references: dict[int, Start] = {}
    for processes in sorted({2 if kind in TWO_PROCESSES else 1 for kind in kinds}):
        references[processes] = start(command(config, folder / f"undisturbed-{processes}"), processes=processes)
        if references[processes].code != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{references[processes].output[-3000:]}")
        print(f"undisturbed, {processes} process(es): {references[processes].seconds:.1f} s", flush=True)
    for number, kind in enumerate(kinds):
        processes = 2 if kind in TWO_PROCESSES else 1
        row = None
        while row is None:  # drawn again where the run was over before
            fault = draw_fault(kind, draw, references[processes])
            row = kill_and_go_on(folder / f"run-{number}", config, fault, folder / f"undisturbed-{processes}")
        rows.append(row)
        print(
            f"{number + 1:3d} {row['kind']:10s} {row['where']:34s} {'ok' if not row['findings'] else row['findings']}",
            flush=True,
        )
    return {
        "count": len(rows),
        "seed": arguments.seed,
        "undisturbed_seconds": {processes: reference.seconds for processes, reference in references.items()},
        "rows": rows,
        "findings": [row for row in rows if row["findings"]],
    }


def command(config: Path, run: Path) -> list[str]:
    """The arguments of train_kd.py."""
    return ["--config", str(config), "--output_dir", str(run)]


def kill_and_go_on(parent: Path, config: Path, fault: Fault, reference: Path) -> dict[str, Any] | None:
    """One run with one fault.

    Returns:
        What happened; None where the run was over before the fault came.
    """
    parent.mkdir()
    with fault.place(parent) as place:
        run = place / "run"
        words = [*command(config, run), *fault.options]
        killed = start(words, fault=fault, run=run, processes=fault.processes)
        row = None if killed.code == 0 else go_on(words, run, killed, fault, reference)
    shutil.rmtree(parent, ignore_errors=True)
    return row


def go_on(words: list[str], run: Path, killed: Start, fault: Fault, reference: Path) -> dict[str, Any]:
    """Look at what a killed run left, start it again until it is done, and compare."""
    findings = [
        f"{checkpoint.name} of the {stage.name} is not whole: {damage}"
        for stage in (run / "checkpoints").glob("*")
        for checkpoint in checkpoints_in(stage)
        if (damage := damage_of(checkpoint)) is not None
    ]
    whole = {stage.name: [path.name for path in checkpoints_in(stage)] for stage in (run / "checkpoints").glob("*")}
    findings += fault.judge(killed)
    fault.make_room()
    starts, again = 0, killed
    while again.code != 0 and starts < _MOST_STARTS:
        again, starts = start(words, run=run, processes=fault.processes), starts + 1
    if again.code != 0:
        findings.append(f"did not go on: {again.output.strip().splitlines()[-1:]}")
    else:
        if starts > 1:
            findings.append(f"needed {starts} starts")
        for stage, checkpoints in whole.items():
            taken_up = (f"{stage}: goes on from", f"{stage}: finished earlier", "finished; nothing to do")
            if checkpoints and not any(words in again.output for words in taken_up):
                findings.append(f"{stage}: {checkpoints[-1]} was whole and not used")
        told = compare(RunFolder(reference), RunFolder(run), tolerance=0.0)
        findings += [f"{name}: {before} undisturbed, {now} now" for name, (before, now) in told.differences.items()][:5]
        findings += [f"the weights of the {model} are others" for model, same in told.weights.items() if not same]
        findings += [] if told.exact else [f"not compared to the last digit: {told.environment + told.data}"]
    said = killed.output.strip().splitlines()
    return {
        "kind": fault.kind,
        "where": fault.where,
        "exit_code": killed.code,
        "seconds_until_end": round(killed.seconds, 1),
        "last_line": said[-1][:300] if said else "",
        "whole_checkpoints": whole,
        "went_on": [
            line.strip() for line in again.output.splitlines() if "goes on from" in line or "not whole" in line
        ],
        "starts": starts,
        "findings": findings,
    }


def print_table(result: dict[str, Any]) -> None:
    """Print how many faults of each kind went well."""
    count, bad = Counter(row["kind"] for row in result["rows"]), Counter(row["kind"] for row in result["findings"])
    print("\n| fault | runs | went on, equal to the last bit | exit codes |\n| :-- | --: | --: | :-- |")
    for kind, number in count.items():
        codes = Counter(row["exit_code"] for row in result["rows"] if row["kind"] == kind)
        shown = ", ".join(f"{code} × {times}" for code, times in sorted(codes.items()))
        print(f"| {KINDS[kind]} | {number} | {number - bad[kind]} | {shown} |")
    for row in result["findings"]:
        print(f"FINDING: {row['kind']} {row['where']}: {row['findings']}")


if __name__ == "__main__":
    sys.exit(main())
