"""Write the committed table of published patients, `hf_kdmri/data/figshare_patients.csv`.

    python -m dataset_script.write_split_table SLICES_CSV CVIND_MAT OUT

SLICES_CSV has the columns slice, label (1-3) and pid; CVIND_MAT is the authors' `cvind.mat`. The table was written once
and is the truth from then on: a change of the rule in `hf_kdmri.data.splits` must not move published patients.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import h5py

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.splits import FOLDS, PARTS_PER_FOLD, Patient, group_parts, patient_group_of


def published_table(slices_csv: str | Path, cvind_mat: str | Path) -> list[Patient]:
    """Derive the table's rows, sorted by PID, from the list of slices and the authors' folds.

    Raises:
        ValueError: a PID with two labels, or in two of the authors' folds.
    """
    with open(slices_csv, newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["slice"]))
    with h5py.File(cvind_mat, "r") as file:
        cvind = file["cvind"][()].ravel().astype(int).tolist()
    if len(cvind) != len(rows):
        raise ValueError(
            f"{cvind_mat} has {len(cvind)} slices but {slices_csv} has {len(rows)}; give files that belong together"
        )
    facts: dict[str, tuple[int, int]] = {}
    for row, fold in zip(rows, cvind, strict=True):
        fact = (int(row["label"]) - 1, fold)
        if facts.setdefault(row["pid"], fact) != fact:
            raise ValueError(f"PID {row['pid']} has (label, fold) {facts[row['pid']]} and {fact}; expected one of each")
    groups = [patient_group_of(row["pid"]) for row in rows]
    parts = group_parts(groups, [int(row["label"]) for row in rows], FOLDS, PARTS_PER_FOLD)
    counts = Counter(row["pid"] for row in rows)
    return [
        Patient(pid, patient_group_of(pid), label, counts[pid], parts[patient_group_of(pid)], fold)
        for pid, (label, fold) in sorted(facts.items())
    ]


def main() -> None:
    """Parse the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slices_csv", type=Path)
    parser.add_argument("cvind_mat", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    table = published_table(args.slices_csv, args.cvind_mat)
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pid", "patient_group", "label", "slices", "part", "cvind"])
        for row in table:
            writer.writerow([row.pid, row.patient_group, LABEL_NAMES[row.label], row.slices, row.part, row.cvind])
    print(f"{args.out}: {len(table)} PIDs in {len({row.patient_group for row in table})} patient groups")


if __name__ == "__main__":
    main()
