"""What the two fuzzing scripts share: their options, which files they read, and what becomes of findings."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

MAX_SECONDS = 2.0
Mutator = Callable[[random.Random], bytes]


class Judged(Protocol):
    """What became of one file."""

    @property
    def kind(self) -> str:
        """Of the file."""

    @property
    def number(self) -> int:
        """Which of its kind."""

    @property
    def verdict(self) -> str:
        """Either `valid`, `refused` or what is wrong."""

    @property
    def finding(self) -> bool:
        """True if the reader did what it must not."""


def add_options(parser: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
    """The options of both scripts; each adds its own --json."""
    parser.add_argument("--count", type=int, default=5000, help="files of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds), help="default: all")
    parser.add_argument("--only", metavar="KIND:NUMBER", help=f"one file, e.g. {kinds[0]}:17")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz_findings"), help="findings go here (default: %(default)s)"
    )


def planned(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Kind and number of each file."""
    if arguments.only:
        kind, number = arguments.only.split(":")
        return [(kind, int(number))]
    return [(kind, number) for number in range(arguments.count) for kind in arguments.kinds]


def mutated(mutate: Mutator, kind: str, seed: int, number: int) -> bytes:
    """The file of that kind and number, the same on every machine and in both scripts."""
    return mutate(random.Random(f"{kind} {seed} {number}"))


def is_finding(verdict: str) -> bool:
    """True of what a reader must not do."""
    return verdict not in ("valid", "refused")


def finish(
    outcomes: Iterable[Judged], result: dict[str, Any], file_of: Callable[[str, int], bytes], arguments: Any
) -> None:
    """Keep the files of findings, write the figures, and exit with 1 if there was a finding."""
    findings = [outcome for outcome in outcomes if outcome.finding]
    for outcome in findings:
        path = arguments.keep / f"seed{arguments.seed}-{outcome.kind}-{outcome.number}.{outcome.kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(outcome.kind, outcome.number))
        print(f"{path}: {outcome.verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(findings))
