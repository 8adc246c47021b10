"""`train_step.py --peers`: this project's step beside its peers' and the floor, in one run."""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from contenders import COMPILED, OURS, ROUGH, TOLERANCE, has_compiler, is_rounded, off_by
from peers import DOCUMENTED, KEEPING, TUNED, find_peers
from rich.console import Console
from rich.table import Table
from timing import circumstances, shown, spread
from workers import Worker, peak_of

MEMORY = 1.10
UNCACHED = ("ours, logits", "ours, geometry", f"ours, logits, {COMPILED}", f"ours, geometry, {COMPILED}")
# Least images per second against a peer, and most time against the floor or the student alone.
AGAINST = {DOCUMENTED: 2.0, TUNED: 1.3, KEEPING: None}
AT_MOST = {
    "ours, logits / floor": 1.05,
    "ours, geometry / floor": 1.10,
    f"ours, logits, {COMPILED} / floor": 1.05,
    f"ours, geometry, {COMPILED} / floor": 1.10,
    "ours, logits, cached / student": 1.05,
    "ours, geometry, cached / student": 1.15,
}


def run_against_peers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check the losses, time in alternating rounds, measure memory, print; the figures, ready for JSON.

    Two processes hold the contenders: one with the allocator as it is, for the peers as documented and with our
    precision and layout, and one that keeps its memory as our training does, for ours, the floor, and the peers again.

    Raises:
        SystemExit: a loss is not the reference's.
    """
    peers, missing = find_peers(arguments.peers_path)
    mine = list(OURS)
    if not has_compiler(torch.device(arguments.device)):
        mine = [name for name in mine if not name.endswith(COMPILED)]
        missing.append("the compiled teacher is left out: torch.compile does not work here; is there a C++ compiler?")
    as_it_is = [name for name in peers if not name.endswith(KEEPING)]
    kept = [*mine, *(name for name in peers if name.endswith(KEEPING))]
    with ExitStack() as stack:
        plain = stack.enter_context(closing(Worker(arguments, as_it_is, keep=False)))
        keeping = stack.enter_context(closing(Worker(arguments, kept, keep=True)))
        holder = dict.fromkeys(as_it_is, plain) | dict.fromkeys(kept, keeping)
        losses = compare_losses(holder, plain.ask("reference"), arguments)
        rounds = []
        for number in range(arguments.repeats + 1):
            times = {name: holder[name].ask("time", name) for name in holder}
            rounds += [times] if number else []  # the first finds memory and kernels
    memory = (
        {}
        if arguments.no_memory
        else {name: peak_of(arguments, name, keep=name in kept) for name in holder if name != "teacher forward"}
    )
    result = {
        "figures": {
            name: {
                "milliseconds": spread([1e3 * times[name] for times in rounds]),
                "images_per_second": arguments.batch_size / statistics.median(times[name] for times in rounds),
                **({"mebibytes": memory[name]} if name in memory else {}),
            }
            for name in holder
        },
        "losses": losses,
        "ratios": ratios(rounds, peers),
        "memory_over_leanest_peer": memory_ratio(memory, peers),
        "hours_of_a_sweep": hours_of_a_sweep(rounds, arguments.batch_size),
        "missing": missing,
        **circumstances(arguments, torch.device(arguments.device)),
    }
    result["versions"]["torchdistill"] = _version("torchdistill")
    print_result(result)
    return result


def compare_losses(
    holder: dict[str, Worker], reference: tuple[float, float, float], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Every contender's loss on the batch beside the reference's, at the weights that the contender has.

    Args:
        holder: which process has which contender.
        reference: cross-entropy, T² · KL and geometry.
        arguments: of the command line.

    Raises:
        SystemExit: one is further off than rounding explains.
    """
    rows, wrong = {}, []
    for name, worker in holder.items():
        answer = worker.ask("loss", name)
        if answer is None:
            continue
        loss, weights = answer
        expected, difference = off_by(loss, weights, reference)
        rows[name] = {
            "cross_entropy_times": weights[0], "kl_times": weights[1], "geometry_times": weights[2],
            "loss": loss, "reference": expected, "relative_difference": difference,
        }  # fmt: skip
        is_kept = name.endswith("cached")  # in half precision
        rough = is_kept or (is_rounded(arguments) and not name.endswith(DOCUMENTED))
        if difference > (ROUGH if rough else TOLERANCE):
            wrong.append(f"{name}: {loss:.6f} instead of {expected:.6f}")
    if wrong:
        raise SystemExit("losses differ from the reference, so times would not compare:\n  " + "\n  ".join(wrong))
    return rows


def ratios(rounds: list[dict[str, float]], peers: list[str]) -> dict[str, dict[str, float]]:
    """Round by round, with their spread: a peer's time over ours, and ours over the floor and the student alone."""
    told = {}
    uncached = [name for name in UNCACHED if name in rounds[0]]
    for peer in peers:
        for mine in uncached:
            told[f"{peer} / {mine}"] = spread([times[peer] / times[mine] for times in rounds])
    for mine in uncached:
        told[f"{mine} / floor"] = spread(
            [times[mine] / (times["student step"] + times["teacher forward"]) for times in rounds]
        )
    for mine in ("ours, logits", "ours, geometry"):
        told[f"{mine}, cached / student"] = spread(
            [times[f"{mine}, cached"] / times["student step"] for times in rounds]
        )
    return told


def hours_of_a_sweep(
    rounds: list[dict[str, float]], batch_size: int, *, students: int = 10, epochs: int = 32, images: int = 2144
) -> dict[str, float]:
    """Hours of training many students from one teacher, each asking it, or from one cache that is built first.

    Args:
        rounds: seconds of the contenders.
        batch_size: of a step.
        students: trained one after the other.
        epochs: of each; the cache holds as many views of each image.
        images: of the training split, by default that of one fold of the published slices.
    """
    steps = epochs * -(-images // batch_size)

    def hours(name: str) -> float:
        return steps * statistics.median(times[name] for times in rounds) / 3600

    cache = hours("teacher forward")
    return {
        "students": students,
        "asking": students * hours("ours, logits"),
        "building the cache": cache,
        "cached": cache + students * hours("ours, logits, cached"),
    }


def memory_ratio(memory: dict[str, dict[str, float]], peers: list[str]) -> dict[str, float]:
    """Our peaks over that of the leanest peer."""
    if not memory:
        return {}
    leanest = min(memory[name]["peak"] for name in peers)
    return {name: memory[name]["peak"] / leanest for name in UNCACHED if name in memory}


def print_result(result: dict[str, Any]) -> None:
    """The figures for people."""
    settings, console = result["settings"], Console(width=130)
    student = "bfloat16" if settings["bf16"] else "float32"
    console.print(
        f"{settings['teacher']} ({settings['teacher_dtype']}) → {settings['student']} ({student}), "
        f"{settings['image_size']} px, batch {settings['batch_size']}, {settings['repeats']} rounds; {result['device']}"
    )
    for line in result["missing"]:
        console.print(line, markup=False)
    table = Table("", "loss", "off by", title="Losses on the batch, and the reference's")
    for name, row in result["losses"].items():
        table.add_row(name, f"{row['loss']:.5f}", f"{row['relative_difference']:.1e}")
    console.print(table)
    table = Table("", "images / s", "ms (median)", "ms (min–max)", "peak MiB", title="Steps")
    for name, figure in result["figures"].items():
        ms, peak = figure["milliseconds"], figure.get("mebibytes")
        table.add_row(
            name, f"{figure['images_per_second']:.0f}", f"{ms['median']:.0f}", f"{ms['min']:.0f}–{ms['max']:.0f}",
            "" if peak is None else f"{peak['peak']:.0f}",
        )  # fmt: skip
    console.print(table)
    told = result["ratios"]
    uncached = [name for name in UNCACHED if name in result["figures"]]
    table = Table("", *uncached, "wanted", title="A peer's time over ours, round by round: median (min–max)")
    for peer in result["figures"]:
        against = [told.get(f"{peer} / {mine}") for mine in uncached]
        if all(against):
            least = _least(peer)
            table.add_row(peer, *map(shown, against), "" if least is None else f"≥ {least:.1f}")
    console.print(table)
    table = Table("", "ratio (min–max)", "wanted", title="Ours over the floor, or over the student's step alone")
    for name, most in AT_MOST.items():
        if name in told:
            table.add_row(name, shown(told[name]), f"≤ {most:.2f}: {_met(told[name]['median'] <= most)}")
    for name, value in result["memory_over_leanest_peer"].items():
        table.add_row(f"peak memory, {name} / leanest peer", f"{value:.2f}", f"≤ {MEMORY:.2f}: {_met(value <= MEMORY)}")
    console.print(table)
    sweep = result["hours_of_a_sweep"]
    console.print(
        f"{sweep['students']} students of one teacher: {sweep['asking']:.2f} hours when each asks it, "
        f"{sweep['cached']:.2f} from a cache, which is built in that time"
    )
    console.print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))


def _least(peer: str) -> float | None:
    return next(least for how, least in AGAINST.items() if peer.endswith(how))


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
