#!/usr/bin/env python
"""Our losses beside the published code of their authors: the same random tensors, values and gradients.

    python benchmarks/compare_with_originals.py --rkd RKD --reviewkd ReviewKD --mdistiller mdistiller \\
      --dist DIST_KD --ofa OFAKD --torchdistill SITE_PACKAGES --json originals.json

Each folder is a clone of a public repository, or for torchdistill the folder that holds the installed package; what is
not given is left out. Their modules are imported, that is, run: give clones that you trust. None of that code is here.

Random inputs are float64, so a difference is one of formula, not of rounding; hard inputs (sure logits, off-centre
features) are float32, and there ours must agree with the published formula in float64 to 1e-4 of its value. Every
difference above 1e-5 must have its reason in the last column, or the script exits with 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from originals import (
    Case,
    Loss,
    dist_cases,
    mdistiller_cases,
    ofa_cases,
    reviewkd_cases,
    rkd_cases,
    torchdistill_cases,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

TOLERANCE = 1e-5
PEERS = {
    "rkd": ("lenscloth/RKD", rkd_cases),
    "reviewkd": ("dvlab-research/ReviewKD", reviewkd_cases),
    "mdistiller": ("megvii-research/mdistiller", mdistiller_cases),
    "dist": ("hunto/DIST_KD", dist_cases),
    "ofa": ("Hao840/OFAKD", ofa_cases),
    "torchdistill": ("torchdistill", torchdistill_cases),
}


@dataclass
class Row:
    """What a case gave."""

    peer: str
    loss: str
    inputs: str
    ours: float
    theirs: float
    theirs_float64: float
    float32_inputs: bool
    value_difference: float
    gradient_difference: float
    note: str

    @property
    def unexplained(self) -> bool:
        """Whether a difference above the tolerance, or one that is not a number, has no reason."""
        agrees = self.value_difference <= TOLERANCE and self.gradient_difference <= TOLERANCE
        exact = abs(self.ours - self.theirs_float64) <= 1e-4 * abs(self.theirs_float64)
        return not (agrees or self.note) or (self.float32_inputs and not exact)


def main() -> None:
    """Compare, print a table, write JSON."""
    arguments = parse_arguments()
    given = {peer: folder for peer in PEERS if (folder := getattr(arguments, peer))}
    if not given:
        sys.exit(f"nothing to compare with: give at least one of {', '.join(f'--{peer}' for peer in PEERS)}")
    warnings.filterwarnings("ignore", category=UserWarning)  # of their code, about names torch renamed
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows: list[Row] = []
    for peer, folder in given.items():
        name, cases = PEERS[peer]
        rows += [compare(name, case) for case in cases(folder.resolve())]
    print_table(rows)
    if arguments.json:
        result = [{key: finite_or_name(value) for key, value in asdict(row).items()} for row in rows]
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if any(row.unexplained for row in rows):
        sys.exit("some differences have no reason")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, (name, _) in PEERS.items():
        parser.add_argument(f"--{option}", type=Path, metavar="DIR", help=f"folder with {name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def draw(inputs: str) -> tuple[Tensor, Tensor, Tensor]:
    """Student's tensor, teacher's tensor and labels, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    student, teacher = {
        "logits": lambda: (3 * normal(32, 3), 3 * normal(32, 3)),
        "logits × 50": lambda: (50 * normal(32, 3).float(), 50 * normal(32, 3).float()),
        "embeddings": lambda: (normal(32, 20), normal(32, 48)),
        "embeddings + 1000": lambda: (normal(32, 20).float() + 1000, normal(32, 48).float() + 1000),
        "maps": lambda: (normal(8, 6, 16, 16), normal(8, 6, 16, 16)),
        "maps, unlike": lambda: (normal(8, 6, 16, 16), normal(8, 10, 8, 8)),
        "maps, oblong": lambda: (normal(8, 6, 8, 4), normal(8, 6, 8, 4)),
    }[inputs]()
    return student, teacher, torch.randint(0, 3, (len(student),), generator=generator)


def compare(peer: str, case: Case) -> Row:
    """Value and gradient of both sides."""
    student, teacher, labels = draw(case.inputs)
    ours, gradient_ours = value_and_gradient(case.ours, student, teacher, labels)
    theirs, gradient_theirs = value_and_gradient(case.theirs, student, teacher, labels)
    float64, _ = value_and_gradient(case.theirs, student.double(), teacher.double(), labels)
    return Row(
        peer,
        case.loss,
        case.inputs,
        ours,
        theirs,
        float64,
        student.dtype == torch.float32,
        abs(ours - theirs),
        (gradient_ours - gradient_theirs).abs().max().item(),
        case.note,
    )


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """A loss and its gradient at the student's tensor."""
    student = student.clone().requires_grad_()
    value = loss(student, teacher, labels).squeeze()
    (gradient,) = torch.autograd.grad(value, student)
    return value.item(), gradient


def finite_or_name(value: float | str) -> float | str:
    """The value, or "nan" or "inf", for which JSON has no number."""
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def print_table(rows: list[Row]) -> None:
    """One row per case."""
    table = Table(title="our loss − published code")
    for column in ("published code", "loss", "inputs"):
        table.add_column(column)
    for column in ("ours", "theirs", "theirs, float64", "|value diff.|", "|gradient diff.|, max"):
        table.add_column(column, justify="right")
    table.add_column("reason")
    for row in rows:
        numbers = (f"{number:.6g}" for number in (row.ours, row.theirs, row.theirs_float64))
        differences = (f"{number:.1e}" for number in (row.value_difference, row.gradient_difference))
        note = "NO REASON GIVEN" if row.unexplained else row.note
        table.add_row(row.peer, row.loss, row.inputs, *numbers, *differences, note)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
