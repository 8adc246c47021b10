"""Patients stay on one side, on every machine, for every config and fold."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.splits import (
    CONFIGS,
    FOLDS,
    PATIENTS_CSV,
    SPLITS,
    assign_splits,
    group_folds,
    group_parts,
    missing_slices,
    patient_group_of,
    published_patients,
    split_by_group,
)
from tests.conftest import ROOT

ALL = [(config, fold) for config in CONFIGS for fold in range(FOLDS)]


def published() -> tuple[list[str], list[int], list[int]]:
    """The published slices' PIDs and labels, numbered patient by patient (the table has no slice numbers)."""
    rows = [(p.pid, p.label) for p in published_patients().values() for _ in range(p.slices)]
    return [pid for pid, _ in rows], [label for _, label in rows], list(range(1, len(rows) + 1))


def own(patients: int = 40, per_patient: int = 5) -> tuple[list[str], list[int], list[int]]:
    """Slices of patients who are not in the table, every third with a repeat scan."""
    pids, labels = [], []
    for patient in range(patients):
        for i in range(per_patient + patient % 3):
            pids.append(f"MR8{patient:05d}" + ("B" if patient % 3 == 0 and i > 2 else ""))
            labels.append(patient % 3)
    return pids, labels, list(range(1, len(pids) + 1))


@pytest.mark.parametrize(
    ("pid", "group"),
    [
        ("MR040240B", "MR040240"),
        ("MR040240", "MR040240"),
        ("100360", "100360"),
        ("90284", "90284"),
        ("B", "B"),
        ("", ""),
    ],
)
def test_patient_group_of(pid, group):
    assert patient_group_of(pid) == group


def test_committed_table():
    table = published_patients()
    assert len(table) == 233
    groups = defaultdict(list)
    for patient in table.values():
        assert patient.patient_group == patient_group_of(patient.pid)
        assert patient.part in range(10) and patient.cvind in range(1, 6)
        groups[patient.patient_group].append(patient)
    assert len(groups) == 209
    assert all(len({(p.part, p.label) for p in members}) == 1 for members in groups.values())
    repeated = [members for members in groups.values() if len(members) > 1]
    assert (len(repeated), sum(len(m) for m in repeated), sum(p.slices for m in repeated for p in m)) == (18, 42, 811)
    assert sum(len({p.cvind for p in members}) > 1 for members in repeated) == 15
    counts = Counter()
    for patient in table.values():
        counts[LABEL_NAMES[patient.label]] += patient.slices
    assert counts == {"meningioma": 708, "glioma": 1426, "pituitary": 930}


def test_committed_table_never_changes():
    digest = hashlib.sha256(PATIENTS_CSV.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    assert digest == "555c4c64c8254c5a8b182d62525efc7305f57dd9131e3ad5c516e7413dd75f47", (
        "published results depend on this table"
    )


@pytest.mark.parametrize(("config", "fold"), ALL)
def test_who_is_on_which_side(config, fold):
    pids, labels, slices = published()
    splits = assign_splits(pids, labels, slices, config, fold)
    assert len(splits) == 3064 and set(splits) == set(SPLITS)
    pids_in, groups_in = defaultdict(set), defaultdict(set)
    for pid, split in zip(pids, splits, strict=True):
        pids_in[split].add(pid)
        groups_in[split].add(patient_group_of(pid))
    assert not groups_in["train"] & groups_in["validation"]  # in every config
    if config != "random_slices":
        assert not pids_in["test"] & (pids_in["train"] | pids_in["validation"])
    if config == "patient_groups":
        assert not groups_in["test"] & (groups_in["train"] | groups_in["validation"])
    share = {split: count / 3064 for split, count in Counter(splits).items()}
    tolerance = 0.02 if config == "cvind" else 0.005
    assert share["test"] == pytest.approx(0.2, abs=tolerance)
    assert share["validation"] == pytest.approx(0.1, abs=0.005)
    assert share["train"] == pytest.approx(0.7, abs=tolerance)


@pytest.mark.parametrize("config", ["patient_groups", "random_slices"])
@pytest.mark.parametrize("fold", range(FOLDS))
def test_class_shares(config, fold):
    pids, labels, slices = published()
    splits = assign_splits(pids, labels, slices, config, fold)
    for split in SPLITS:
        inside = [label for label, where in zip(labels, splits, strict=True) if where == split]
        for label, count in Counter(labels).items():
            assert abs(inside.count(label) / len(inside) - count / 3064) < 0.01  # asked for: 0.05


@pytest.mark.parametrize(
    ("config", "slices_of"), [*((c, published) for c in CONFIGS), ("patient_groups", own), ("random_slices", own)]
)
def test_every_slice_is_tested_once_over_folds(config, slices_of):
    tested = Counter()
    for fold in range(FOLDS):
        pids, labels, slices = slices_of()
        splits = assign_splits(pids, labels, slices, config, fold)
        tested.update(number for number, split in zip(slices, splits, strict=True) if split == "test")
    assert set(tested) == set(slices) and set(tested.values()) == {1}


@pytest.mark.parametrize("config", ["patient_groups", "cvind"])
def test_a_subset_of_published_slices_keeps_its_places(config):
    pids, labels, slices = published()
    whole = dict(zip(slices, assign_splits(pids, labels, slices, config, 2), strict=True))
    some = range(0, 3064, 3)
    subset = assign_splits([pids[i] for i in some], [labels[i] for i in some], [slices[i] for i in some], config, 2)
    in_test = [whole[slices[i]] == "test" for i in some]
    assert [split == "test" for split in subset] == in_test
    if config == "patient_groups":
        assert subset == [whole[slices[i]] for i in some]


def test_groups_stay_whole_with_one_unknown_pid_or_another_label():
    pids, labels, slices = published()
    for changed in ((["MR800001", *pids[1:]], labels), (pids, [2 - labels[0], *labels[1:]])):
        by_rule = assign_splits(*changed, slices)
        groups_in = defaultdict(set)
        for pid, split in zip(changed[0], by_rule, strict=True):
            groups_in[patient_group_of(pid)].add(split)
        assert all(len(where) == 1 for where in groups_in.values())


@pytest.mark.parametrize("fold", range(FOLDS))
def test_own_patients(fold):
    pids, labels, slices = own()
    splits = assign_splits(pids, labels, slices, "patient_groups", fold)
    groups_in = defaultdict(set)
    for pid, split in zip(pids, splits, strict=True):
        groups_in[patient_group_of(pid)].add(split)
    assert all(len(where) == 1 for where in groups_in.values())
    for split in SPLITS:
        assert {label for label, where in zip(labels, splits, strict=True) if where == split} == {0, 1, 2}


def test_seed_moves_random_slices_only():
    pids, labels, slices = own()
    for config in ("patient_groups", "random_slices"):
        first, second = (assign_splits(pids, labels, slices, config, 0, seed) for seed in (0, 1))
        assert (first == second) == (config == "patient_groups")


def test_order_of_slices_does_not_matter():
    pids, labels, slices = own()
    backwards = assign_splits(pids[::-1], labels[::-1], slices[::-1], "random_slices", 1)
    assert backwards[::-1] == assign_splits(pids, labels, slices, "random_slices", 1)
    assert assign_splits(pids[::-1], labels[::-1], slices[::-1])[::-1] == assign_splits(pids, labels, slices)


def test_same_in_every_process():
    script = (
        "import json, sys; sys.path[:0] = ['.']; import tests.test_splits as t; from hf_kdmri.data.splits import *;"
        "print(json.dumps([assign_splits(*t.own(), c, f) for c, f in t.ALL if c != 'cvind']"
        " + [assign_splits(*t.published(), c, f) for c, f in t.ALL]))"
    )
    here = [assign_splits(*own(), c, f) for c, f in ALL if c != "cvind"]
    here += [assign_splits(*published(), c, f) for c, f in ALL]
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PATH": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(out.stdout) == here


@pytest.mark.parametrize("fold", [-1, 5, 1.0, "0", True, None])
def test_fold_out_of_range(fold):
    with pytest.raises(ValueError, match="choose one of 0, 1, 2, 3, 4"):
        assign_splits(*own(), "patient_groups", fold)


def test_other_refusals():
    pids, labels, slices = own()
    with pytest.raises(ValueError, match="choose one of patient_groups, cvind, random_slices"):
        assign_splits(pids, labels, slices, "by_patient")
    with pytest.raises(ValueError, match=r"needs the published patients.*MR800000.*use config 'patient_groups'"):
        assign_splits(pids, labels, slices, "cvind")
    with pytest.raises(ValueError, match="one of each per slice"):
        assign_splits(pids, labels[1:], slices)
    with pytest.raises(ValueError, match="slice 2 is given twice"):
        assign_splits(pids, labels, [2, *slices[1:]])
    with pytest.raises(
        ValueError, match=r"2 patient groups leave .* empty; give more of them, at least 5 of each class"
    ):
        assign_splits(["a", "b"], [0, 1], [1, 2])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([None, *range(19)], r"the group of row 0 is empty \(None\)"),
        ([*range(19), float("nan")], r"the group of row 19 is empty \(nan\)"),
        (["  ", *range(19)], "the group of row 0 is empty"),
        ([*range(19), "3"], r"groups 3 and '3' \(row 19\) differ in type or blanks only"),
        ([*"abcdefghijklmnopqrs", "a "], r"groups 'a' and 'a ' \(row 19\)"),
    ],
)
def test_groups_that_do_not_say_who_it_is_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        split_by_group(groups, ["x"] * 20)


def test_split_by_group_keeps_groups_whole_and_tests_everything_once():
    groups = [f"p{n // 3}" for n in range(120)]
    labels = [n // 3 % 2 for n in range(120)]
    tested = []
    for fold in range(5):
        split = np.array(split_by_group(groups, labels, fold))
        parts = {name: {g for g, s in zip(groups, split, strict=True) if s == name} for name in set(split)}
        assert sum(map(len, parts.values())) == 40 and len(parts) == 3
        tested += np.flatnonzero(split == "test").tolist()
    assert sorted(tested) == list(range(120))


def test_missing_slices():
    pids = sorted(published_patients())
    assert missing_slices(pids[:2], range(3, 3065)) == [1, 2]
    assert missing_slices([*pids[:2], "own"], [1]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.integers(0, 3)), min_size=1, max_size=80))
def test_group_folds_keeps_groups_whole_and_balanced(rows):
    groups, labels = [g for g, _ in rows], [label for _, label in rows]
    folds = group_folds(groups, labels)
    assert all(len({f for g, f in zip(groups, folds, strict=True) if g == group}) == 1 for group in set(groups))
    by_group = {group: group for group in groups}  # one label per group: loads differ by at most the largest group
    folds = group_folds(groups, [0] * len(groups))
    loads = [folds.count(fold) for fold in range(FOLDS)]
    assert max(loads) - min(loads) <= max(groups.count(group) for group in by_group)


def test_group_parts_refuses_unequal_lists():
    with pytest.raises(ValueError, match="2 groups but 1 labels"):
        group_parts(["a", "b"], [0])


@pytest.mark.real_data
def test_table_against_the_facts(figshare_dir):
    from dataset_script.write_split_table import published_table

    derived = published_table(figshare_dir / "slices.csv", figshare_dir / "cvind.mat")
    assert {row.pid: row for row in derived} == dict(published_patients())


@pytest.mark.real_data
@pytest.mark.parametrize(("config", "fold"), ALL)
def test_real_slices(figshare_dir, config, fold):
    with open(figshare_dir / "slices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pids, labels = [row["pid"] for row in rows], [int(row["label"]) - 1 for row in rows]
    splits = assign_splits(pids, labels, [int(row["slice"]) for row in rows], config, fold)
    assert Counter(labels) == {0: 708, 1: 1426, 2: 930} and len(set(pids)) == 233
    if config == "patient_groups":
        for pid, split in zip(pids, splits, strict=True):
            part = published_patients()[pid].part
            assert (split == "test") == (part // 2 == fold) and (split == "validation") == (
                part == 2 * ((fold + 1) % 5)
            )
    if config == "cvind":
        import h5py

        with h5py.File(figshare_dir / "cvind.mat") as file:
            authors = file["cvind"][()].ravel()
        assert [split == "test" for split in splits] == [int(f) == fold + 1 for f in authors]
