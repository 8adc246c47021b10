"""Who goes where: train, validation and test by patient group, the same on every machine and library version.

Patient groups are dealt to ten parts of about 10 % each. Fold f tests on parts 2f and 2f + 1 (20 %), validates on the
first part of the next fold (10 %) and trains on the rest (70 %). The published patients' parts are a committed table,
`figshare_patients.csv`; any other patients are dealt by the same greedy rule, which draws no random numbers.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from hf_kdmri.data.mat_file import LABEL_NAMES

PUBLISHED_SLICES = 3064  # numbered from 1
FOLDS = 5
PARTS_PER_FOLD = 2
CONFIGS = ("patient_groups", "cvind", "random_slices")
SPLITS = ("train", "validation", "test")
PATIENTS_CSV = Path(__file__).with_name("figshare_patients.csv")
Group = TypeVar("Group", bound=Hashable)
_SUFFIXED = re.compile(r"([A-Za-z]*\d+)[A-Za-z]")


@dataclass(frozen=True)
class Patient:
    """One row of the committed table: a published PID and where it belongs.

    Attributes:
        pid: Patient id as published; 233 of them.
        patient_group: The id without its letter suffix; 209 of them.
        label: Index into `LABEL_NAMES`.
        slices: Number of published slices.
        part: 0-9, the same for the whole patient group.
        cvind: The authors' fold, 1-5.
    """

    pid: str
    patient_group: str
    label: int
    slices: int
    part: int
    cvind: int


def patient_group_of(pid: str) -> str:
    """Return the patient group of a PID: the id without one trailing letter after its digits.

    Ids that differ in that letter only are most likely repeat scans of one person.

    Example:
        >>> patient_group_of("MR040240B"), patient_group_of("MR040240"), patient_group_of("100360")
        ('MR040240', 'MR040240', '100360')
    """
    suffixed = _SUFFIXED.fullmatch(pid)
    return suffixed.group(1) if suffixed else pid


def missing_slices(pids: Sequence[str], slices: Sequence[int]) -> list[int]:
    """Which of the 3064 published slices are not there, if those that are there are published ones.

    Args:
        pids: Patient id of each slice.
        slices: Number of each slice.

    Returns:
        Slice numbers in order; none if the set is complete, or if any patient is not a published one.
    """
    if not set(pids) <= set(published_patients()):
        return []
    return sorted(set(range(1, PUBLISHED_SLICES + 1)) - set(slices))


@lru_cache(maxsize=1)
def published_patients() -> Mapping[str, Patient]:
    """Return the committed table by PID."""
    with open(PATIENTS_CSV, newline="", encoding="utf-8") as file:
        rows = [
            Patient(
                pid=row["pid"],
                patient_group=row["patient_group"],
                label=LABEL_NAMES.index(row["label"]),
                slices=int(row["slices"]),
                part=int(row["part"]),
                cvind=int(row["cvind"]),
            )
            for row in csv.DictReader(file)
        ]
    return {patient.pid: patient for patient in rows}


def check_fold(fold: int) -> int:
    """Return the fold if it is an int from 0 to 4, else raise a ValueError that names the allowed values."""
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < FOLDS:
        raise ValueError(f"fold is {fold!r}; choose one of {', '.join(map(str, range(FOLDS)))}")
    return fold


def check_config(config: str) -> str:
    """Return the config name if it exists, else raise a ValueError that names the allowed ones."""
    if config not in CONFIGS:
        raise ValueError(f"config is {config!r}; choose one of {', '.join(CONFIGS)}")
    return config


def group_parts(
    groups: Sequence[Group], labels: Sequence[Hashable], folds: int = FOLDS, per_fold: int = 1
) -> dict[Group, int]:
    """Deal groups to `folds * per_fold` parts, balanced by label in slices, then in groups.

    Greedy: from the largest group down, each goes to the fold, and inside it to the part, that has the fewest slices
    of the group's label; ties go to the fewest groups of that label, the fewest slices at all, the lowest number.
    A group with several labels counts under its most frequent one.

    Args:
        groups: Group of each slice.
        labels: Label of each slice.
        folds: Number of folds, each of which is balanced first. Default 5.
        per_fold: Parts per fold. Default 1.

    Returns:
        The part of each group; fold f consists of parts `f * per_fold` to `(f + 1) * per_fold - 1`.

    Example:
        >>> group_parts(["a", "a", "b", "c"], [0, 0, 0, 0], folds=2)
        {'a': 0, 'b': 1, 'c': 1}
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups but {len(labels)} labels; give one of each for every slice")
    label_counts: defaultdict[Group, Counter[Hashable]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        label_counts[group][label] += 1
    fold_loads = [_Load() for _ in range(folds)]
    part_loads = [_Load() for _ in range(folds * per_fold)]
    parts: dict[Group, int] = {}
    for group in sorted(label_counts, key=lambda group: (-label_counts[group].total(), str(group))):
        counts = label_counts[group]
        label = min(counts, key=lambda label: (-counts[label], str(label)))
        fold = min(range(folds), key=lambda fold: (*fold_loads[fold].of(label), fold))
        candidates = range(fold * per_fold, (fold + 1) * per_fold)
        part = min(candidates, key=lambda part: (*part_loads[part].of(label), part))
        for load in (fold_loads[fold], part_loads[part]):
            load.add(label, counts.total())
        parts[group] = part
    return parts


def group_folds(groups: Sequence[str], labels: Sequence[Hashable], folds: int = FOLDS) -> list[int]:
    """Return a fold per slice for your own data: no group in two folds, labels balanced over folds.

    Example:
        >>> group_folds(["ann", "ann", "bob", "cy"], ["tumour", "tumour", "tumour", "none"], folds=2)
        [0, 0, 1, 1]
    """
    parts = group_parts(groups, labels, folds)
    return [parts[group] for group in groups]


def split_by_group(groups: Sequence[Hashable], labels: Sequence[Hashable], fold: int = 0) -> list[str]:
    """Split your own images by the rule of `"patient_groups"`: 70 % train, 10 % validation, 20 % test, by group.

    No group stands in two splits, every image is in the test split of one of the five folds, classes are balanced as
    far as whole groups allow, and nothing is drawn at random.

    Args:
        groups: Whatever must stay together, e.g. the patient, one per image.
        labels: Class of each image.
        fold: 0-4.

    Returns:
        `"train"`, `"validation"` or `"test"` per image.

    Raises:
        ValueError: an unknown fold, lists of unequal length, an empty group (None, NaN or blank), two that differ in
            type or surrounding blanks only, or so few groups that a split stays empty.

    Example:
        >>> patients = [f"p{n // 2}" for n in range(40)]  # two images of each of twenty patients
        >>> split = split_by_group(patients, ["tumour"] * 20 + ["none"] * 20)
        >>> [split.count(name) for name in ("train", "validation", "test")]
        [28, 4, 8]
        >>> {p for p, s in zip(patients, split) if s == "train"} & {p for p, s in zip(patients, split) if s == "test"}
        set()
    """
    check_fold(fold)
    _check_groups(groups)
    parts = group_parts(groups, labels, FOLDS, PARTS_PER_FOLD)
    return _none_empty([_split_of(parts[group], fold) for group in groups], f"{len(parts)} groups", fold)


def assign_splits(
    pids: Sequence[str],
    labels: Sequence[int],
    slices: Sequence[int],
    config: str = "patient_groups",
    fold: int = 0,
    seed: int = 0,
) -> list[str]:
    """Assign each slice to train, validation or test.

    Where every PID is in the committed table with the same label, the table decides, also for a subset of the
    published slices. Otherwise, even if only one PID is unknown, the same greedy rule deals the slices given, so the
    result depends on which slices are given.

    Args:
        pids: Patient id of each slice.
        labels: Index into `LABEL_NAMES` of each slice.
        slices: Number of each slice, each once.
        config: `"patient_groups"` (no patient group in two splits), `"cvind"` (test on the authors' fold `fold + 1`;
            patient groups that their folds divide are in test and in train or validation) or `"random_slices"` (test
            on a fifth of the slices of each class, whoever they belong to: leaks, only to reproduce older reports). In
            the last two,
            validation is an eighth of the other slices, carved by patient group.
        fold: 0-4.
        seed: Orders the slices of `"random_slices"`; the other configs draw nothing. Default 0.

    Returns:
        `"train"`, `"validation"` or `"test"` per slice.

    Raises:
        ValueError: an unknown config or fold, lists of unequal length, a slice twice, fewer patients than splits need,
            or `"cvind"` for PIDs that are not in the table.
    """
    check_config(config)
    check_fold(fold)
    if not len(pids) == len(labels) == len(slices):
        raise ValueError(f"{len(pids)} pids, {len(labels)} labels, {len(slices)} slices; give one of each per slice")
    if len(set(slices)) != len(slices):
        twice = next(number for number, count in Counter(slices).items() if count > 1)
        raise ValueError(f"slice {twice} is given twice; give each slice once")
    groups = [patient_group_of(pid) for pid in pids]
    if config == "patient_groups":
        assigned = _by_patient_group(pids, groups, labels, fold)
    else:
        test = _in_cvind_fold(pids, fold) if config == "cvind" else _in_random_fifth(labels, slices, fold, seed)
        assigned = _carve_validation(groups, labels, test)
    return _none_empty(assigned, f"{len(set(groups))} patient groups", fold)


def _by_patient_group(pids: Sequence[str], groups: Sequence[str], labels: Sequence[int], fold: int) -> list[str]:
    known = published_patients()
    if all(pid in known and known[pid].label == label for pid, label in zip(pids, labels, strict=True)):
        parts = [known[pid].part for pid in pids]
    else:
        dealt = group_parts(groups, labels, FOLDS, PARTS_PER_FOLD)
        parts = [dealt[group] for group in groups]
    return [_split_of(part, fold) for part in parts]


def _split_of(part: int, fold: int) -> str:
    if part // PARTS_PER_FOLD == fold:
        return "test"
    return "validation" if part == PARTS_PER_FOLD * ((fold + 1) % FOLDS) else "train"


def _check_groups(groups: Sequence[Hashable]) -> None:
    """Refuse groups that would let one person through as two, or strangers as one."""
    first: dict[str, Hashable] = {}
    for row, group in enumerate(groups):
        name = str(group).strip()
        if group is None or group != group or not name:  # NaN is not itself
            raise ValueError(f"the group of row {row} is empty ({group!r}); name it, or leave the row out")
        if first.setdefault(name, group) != group:
            raise ValueError(
                f"groups {first[name]!r} and {group!r} (row {row}) differ in type or blanks only; write them alike"
            )


def _none_empty(assigned: list[str], dealt: str, fold: int) -> list[str]:
    lacking = [split for split in SPLITS if split not in assigned]
    if lacking:
        raise ValueError(
            f"{dealt} leave {' and '.join(lacking)} of fold {fold} empty; give more of them, at least {FOLDS} of each "
            f"class for balanced folds"
        )
    return assigned


def _in_cvind_fold(pids: Sequence[str], fold: int) -> list[bool]:
    known = published_patients()
    unknown = sorted({pid for pid in pids if pid not in known})
    if unknown:
        raise ValueError(
            f"config 'cvind' needs the published patients, but {len(unknown)} PIDs are not among them "
            f"({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); use config 'patient_groups'"
        )
    return [known[pid].cvind == fold + 1 for pid in pids]


def _in_random_fifth(labels: Sequence[int], slices: Sequence[int], fold: int, seed: int) -> list[bool]:
    # sorted by a hash, not shuffled by a generator, whose stream may change with a library's version
    order = sorted(range(len(slices)), key=lambda i: hashlib.sha256(f"{seed}:{slices[i]}".encode()).digest())
    test = [False] * len(slices)
    for label in set(labels):
        members = [i for i in order if labels[i] == label]
        for i in members[len(members) * fold // FOLDS : len(members) * (fold + 1) // FOLDS]:
            test[i] = True
    return test


def _carve_validation(groups: Sequence[str], labels: Sequence[int], test: Sequence[bool]) -> list[str]:
    rest = [i for i, in_test in enumerate(test) if not in_test]
    parts = group_parts([groups[i] for i in rest], [labels[i] for i in rest], folds=8)  # 1/8 of 80 % is 10 %
    assigned = ["test"] * len(test)
    for i in rest:
        assigned[i] = "validation" if parts[groups[i]] == 0 else "train"
    return assigned


class _Load:
    """What a fold or part has been dealt so far."""

    def __init__(self) -> None:
        self.slices: Counter[Hashable] = Counter()
        self.groups: Counter[Hashable] = Counter()

    def of(self, label: Hashable) -> tuple[int, int, int]:
        return self.slices[label], self.groups[label], self.slices.total()

    def add(self, label: Hashable, slices: int) -> None:
        self.slices[label] += slices
        self.groups[label] += 1
