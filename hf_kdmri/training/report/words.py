"""What the page of a run says in words: where its numbers come from, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_kdmri.evaluation.statistics.bootstrap import MIN_GROUPS
from hf_kdmri.training.report.pooling import FinishedFold
from hf_kdmri.wording import counted


class ReportWords:
    """Sentences on a finished run.

    Args:
        folds: finished.
        summary: of `evaluate_folds`.
        rows: of `pooled_rows`.
        facts: as for `write_report`.
    """

    def __init__(
        self,
        folds: Sequence[FinishedFold],
        summary: Mapping[str, Any],
        rows: Mapping[str, Mapping[str, Any]],
        facts: Mapping[str, Any],
    ) -> None:
        self.folds, self.summary, self.rows, self.facts = folds, summary, rows, facts
        self.unit = next(iter(rows.values()))["unit"]

    def taught(self) -> list[str]:
        """Architectures of teacher and student."""
        return list(dict.fromkeys([self.rows[m]["architecture"] for m in ("teacher", "student") if m in self.rows]))

    def which_folds(self) -> str:
        """The folds, in a few words."""
        numbers = [fold.facts["fold"] for fold in self.folds]
        if numbers == [None]:
            return "the set's own splits"
        if len(numbers) == 1:
            return f"fold {numbers[0]}"
        return f"folds {', '.join(map(str, numbers))} pooled"

    def lead(self) -> str:
        """What stands below the title: the data, and what brackets mean."""
        groups = f" of {counted(self.summary['patient_groups'], 'patient group')}" if self.has_patients() else ""
        return (
            f"{self.facts['source']}, split {self.facts['split']}, {self.which_folds()}, seed {self.facts['seed']}: "
            f"{self.summary['slices']:,} test {self.unit}{groups}, each predicted once, by models that were not "
            f"trained on {'its patient' if self.summary['disjoint_groups'] and self.has_patients() else 'it'}. "
            f"{self._intervals()}"
        )

    def _intervals(self) -> str:
        groups = "patient groups" if self.has_patients() else self.unit
        if self.summary["patient_groups"] < MIN_GROUPS:
            return f"There are no intervals: fewer than {MIN_GROUPS} {groups} allow none."
        return (
            f"Brackets are 95 % intervals from {self.summary['draws']:,} draws of {groups}; a number that rests on "
            f"fewer than {MIN_GROUPS} of them, or on no error at all, has none."
        )

    def has_patients(self) -> bool:
        """Whether the data say whose each image is."""
        return self.facts.get("has_patients", "patient_groups" in self.facts)

    def warnings(self) -> list[str]:
        """What a reader must know before any number."""
        told = ["Research use only, not a medical device."]
        if not self.facts.get("own_data"):
            told[0] += " There is no class “no tumour”: a healthy slice gets a tumour's name."
        if self.facts["phantom"]:
            told.append(
                "These are generated phantoms: the numbers show that everything runs and say nothing about MRI."
            )
        if not self.summary["disjoint_groups"]:
            told.append(
                "This split puts slices of one patient on both sides. Its numbers show memory of patients as well as "
                "skill and must not be compared with those of a split by patient."
            )
        elif not self.has_patients():
            told.append(
                "Nothing says whose each image is: images of one person may stand in training and test, and the "
                "intervals treat every image as a person of its own."
            )
        if len(self.folds) == 1:
            told.append(
                "One fold: folds differ by more than methods do, so a difference between two runs proves little."
            )
        return told

    def tests(self) -> str:
        """How the p-values were made."""
        swapped = "patient groups" if self.has_patients() else self.unit
        exact = ", and from McNemar's exact test on patients; both" if self.has_patients() else ","
        return (
            f"p from {self.summary['permutations']:,} permutations that swap the two models' answers within "
            f"{swapped}{exact} two-sided, none corrected for the number of comparisons. Where two models differ on "
            f"few {swapped}, p cannot be small, however large the difference."
        )

    def footer(self) -> list[str]:
        """What stands at the end."""
        if self.facts.get("own_data") or self.facts["phantom"]:
            return []
        return [
            "Data: Cheng, Jun, brain tumor dataset, figshare 1512427, CC BY 4.0; PLoS ONE 10(10):e0140381 (2015) and "
            "11(6):e0157112 (2016)."
        ]
