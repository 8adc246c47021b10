"""Test predictions of several models on the same slices: checked, and pooled over folds. One row is one test slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdmri.evaluation.metrics import check_probabilities
from hf_kdmri.evaluation.statistics.prediction_file import read_prediction_file, write_prediction_file

MODELS = ("teacher", "baseline", "student")
_ATTRIBUTES: dict[str, type[np.generic]] = {"plane": np.str_, "height": np.int64, "lesion_area": np.float64}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of up to three models on the same N test slices, refused when they contradict themselves.

    Arrays are converted to the types below at creation.

    Args:
        slices: (N,) int64, what identifies a slice; none twice.
        pids: (N,) str, patient ids as published.
        patient_groups: (N,) str, the person behind several ids; one class each.
        folds: (N,) int64, the fold that a slice was tested in.
        labels: (N,) int64, 0..C-1.
        class_names: C names in label order.
        probabilities: any of "teacher", "baseline" and "student" to (N, C) float64; rows sum to 1.
        attributes: optional, of each slice: `plane` (str), `height` (int64, pixels of the published image) and
            `lesion_area` (float64, share 0..1 of the image that the tumour's mask covers; NaN where unknown).
        disjoint_groups: each patient group was tested in one fold. False admits a split that puts one person on both
            sides (`random_slices`), whose numbers show memory of patients as well as skill.

    Raises:
        ValueError: Another shape, no rows, an unknown model, attribute or label, probabilities that are not finite or
            do not sum to 1, a slice twice, a patient group of two classes or, unless `disjoint_groups` is False, in
            two folds.

    Example:
        >>> predictions = Predictions(
        ...     slices=[7, 9], pids=["MR01", "MR01B"], patient_groups=["MR01", "MR01"], folds=[0, 0], labels=[1, 1],
        ...     class_names=["meningioma", "glioma"], probabilities={"student": [[0.2, 0.8], [0.6, 0.4]]},
        ... )
        >>> len(predictions), predictions.models, predictions.predicted("student").tolist()
        (2, ('student',), [1, 0])
    """

    slices: NDArray[np.int64]
    pids: NDArray[np.str_]
    patient_groups: NDArray[np.str_]
    folds: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    probabilities: Mapping[str, NDArray[np.float64]]
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    disjoint_groups: bool = True

    def __post_init__(self) -> None:
        """Convert the arrays and refuse what cannot be right."""
        put = object.__setattr__  # the way to convert fields of a frozen dataclass
        names = self.class_names
        put(self, "class_names", names if isinstance(names, str) else tuple(names))  # a str is refused below
        if not (n := len(self.slices)):
            raise ValueError("there are no slices; expected at least one. Check the split or the mask of rows.")
        for name in ("slices", "pids", "patient_groups", "folds"):
            put(self, name, _array(name, getattr(self, name), np.str_ if name.startswith("p") else np.int64, n))
        _known("model", self.probabilities, MODELS)
        _known("attribute", self.attributes, tuple(_ATTRIBUTES))
        if not self.probabilities:
            raise ValueError(f"there are no probabilities; expected those of at least one of {', '.join(MODELS)}")
        checked = {}
        for model in (model for model in MODELS if model in self.probabilities):
            try:
                checked[model], labels = check_probabilities(self.probabilities[model], self.labels, self.class_names)
            except ValueError as error:
                raise ValueError(f"{model}: {error}") from error
        put(self, "probabilities", checked)
        put(self, "labels", _array("labels", labels, np.int64, n))
        attributes = {name: _array(name, values, _ATTRIBUTES[name], n) for name, values in self.attributes.items()}
        put(self, "attributes", {name: attributes[name] for name in _ATTRIBUTES if name in attributes})
        area = self.attributes.get("lesion_area", np.zeros(0))
        if (outside := np.flatnonzero((area < 0) | (area > 1))).size:
            raise ValueError(
                f"lesion_area of slice {self.slices[outside[0]]} is {area[outside[0]]} ({outside.size} such rows); "
                "expected the share of the image that the mask covers, 0..1, or NaN"
            )
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        for name in ("pids", "patient_groups"):
            if (empty := np.flatnonzero(getattr(self, name) == "")).size:
                raise ValueError(
                    f"{name} of slice {self.slices[empty[0]]} is empty ({empty.size} such rows); name the patient, or "
                    "give slices without one an id of their own"
                )
        values, counts = np.unique(self.slices, return_counts=True)
        if (twice := values[counts > 1]).size:
            folds = ", ".join(map(str, self.folds[self.slices == twice[0]]))
            raise ValueError(
                f"slice {twice[0]} stands in several rows (of folds {folds}; {twice.size} such slices); each is tested "
                "once. Pool the folds of one split and one seed, each file once."
            )
        if (row := _first_mixed(self.patient_groups, self.labels)) is not None:
            raise ValueError(
                f"patient group {str(self.patient_groups[row])!r} has slices of two classes, one of them "
                f"{self.class_names[self.labels[row]]} (slice {self.slices[row]}); expected one class for each group. "
                "Check that groups and labels come from the same rows."
            )
        if self.disjoint_groups and (row := _first_mixed(self.patient_groups, self.folds)) is not None:
            folds = ", ".join(map(str, np.unique(self.folds[self.patient_groups == self.patient_groups[row]])))
            raise ValueError(
                f"patient group {str(self.patient_groups[row])!r} was tested in folds {folds}, so models may have been "
                "tested on people that they were trained on. If the split was meant to do that (random_slices), pass "
                "disjoint_groups=False and call the result leaking."
            )

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slices)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order teacher, baseline, student."""
        return tuple(self.probabilities)

    def predicted(self, model: str) -> NDArray[np.int64]:
        """Return the class of highest probability, (N,)."""
        return self.probabilities[model].argmax(axis=1)

    def group_index(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Return the G different patient groups, sorted, and for each slice the index of its own, (N,)."""
        groups, index = np.unique(self.patient_groups, return_inverse=True)
        return groups, index

    def patients(self) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
        """Average each model's probabilities over the slices of a patient group.

        Returns:
            Model to (G, C), and the groups' labels (G,), in the order of `group_index`.
        """
        groups, index = self.group_index()
        member = (np.arange(len(groups))[:, None] == index).astype(np.float64)  # (G, N)
        means = {model: member @ p / member.sum(axis=1, keepdims=True) for model, p in self.probabilities.items()}
        return means, self.labels[np.unique(index, return_index=True)[1]]

    def select(self, rows: NDArray[Any]) -> Predictions:
        """Return some of the rows, by a mask (N,) or by indices."""
        return Predictions(
            **{name: getattr(self, name)[rows] for name in ("slices", "pids", "patient_groups", "folds", "labels")},
            class_names=self.class_names,
            probabilities={model: p[rows] for model, p in self.probabilities.items()},
            attributes={name: values[rows] for name, values in self.attributes.items()},
            disjoint_groups=self.disjoint_groups,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions], *, disjoint_groups: bool = True) -> Predictions:
        """Pool the test slices of several folds; what holds of each must hold of all together.

        Args:
            parts: with the same class names, models and attributes.
            disjoint_groups: as for the class, for the whole.

        Raises:
            ValueError: No parts, parts that differ in the names above, or what the class refuses.
        """
        if not parts:
            raise ValueError("there is nothing to pool: expected the predictions of at least one fold")
        first = parts[0]
        for number, part in enumerate(parts):
            for name in ("class_names", "models", "attributes"):
                one, other = tuple(getattr(first, name)), tuple(getattr(part, name))
                if one != other:
                    raise ValueError(f"part {number} has {name} {other}, part 0 has {one}; pool parts of one kind")
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("slices", "pids", "patient_groups", "folds", "labels")
            },
            class_names=first.class_names,
            probabilities={m: np.concatenate([part.probabilities[m] for part in parts]) for m in first.models},
            attributes={a: np.concatenate([part.attributes[a] for part in parts]) for a in first.attributes},
            disjoint_groups=disjoint_groups,
        )

    def write(self, path: str | Path) -> Path:
        """Write the file, whole or not at all: Parquet, or CSV where the name ends in .csv; folders are made.

        Raises:
            ValueError: The name ends in neither .parquet nor .csv.
            OSError: The disk is full or not writable.
        """
        columns = {
            "slice": self.slices,
            "pid": self.pids,
            "patient_group": self.patient_groups,
            "fold": self.folds,
            "label": np.array(self.class_names)[self.labels],
        }
        return write_prediction_file(path, columns, self.class_names, self.probabilities, self.attributes)

    @classmethod
    def read(cls, path: str | Path, *, disjoint_groups: bool = True) -> Predictions:
        """Read what `write` wrote, or any Parquet or CSV file with these columns.

        Args:
            path: ends in .parquet or .csv.
            disjoint_groups: as for the class.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Another suffix, another version of the format, a missing column, an empty cell, a label that is
                not among the class names, or what the class refuses; the message begins with the path.
        """
        columns, class_names, probabilities, attributes = read_prediction_file(path, MODELS, tuple(_ATTRIBUTES))
        position = {name: c for c, name in enumerate(class_names)}
        try:
            if unknown := [label for label in columns["label"] if label not in position]:
                row = list(columns["label"]).index(unknown[0])
                raise ValueError(
                    f"the label {str(unknown[0])!r} of slice {columns['slice'][row]} is not one of "
                    f"{', '.join(class_names)} ({len(unknown)} such rows); correct it, or add the class's columns"
                )
            return cls(
                slices=columns["slice"],
                pids=columns["pid"],
                patient_groups=columns["patient_group"],
                folds=columns["fold"],
                labels=np.array([position[label] for label in columns["label"]], np.int64),
                class_names=class_names,
                probabilities=probabilities,
                attributes=attributes,
                disjoint_groups=disjoint_groups,
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _array(name: str, values: Any, dtype: type[np.generic], n: int) -> NDArray[Any]:
    """Convert to (n,) of a type, or refuse: no float becomes an integer here and no number a text."""
    given = np.asarray(values)
    if given.shape != (n,):
        raise ValueError(f"{name} have shape {given.shape}; expected ({n},), one for each slice")
    if given.dtype == object and all(isinstance(value, str) for value in given):
        given = given.astype(np.str_)
    if given.dtype.kind not in {np.int64: "iu", np.float64: "iuf", np.str_: "U"}[dtype]:
        raise ValueError(
            f"{name} have type {given.dtype} (the first is {given[0]!r}); expected {dtype.__name__.rstrip('_')}, "
            "none missing"
        )
    return given.astype(dtype)


def _known(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}; expected some of {', '.join(known)}")


def _first_mixed(groups: NDArray[np.str_], values: NDArray[np.int64]) -> int | None:
    """Return the first row whose value differs from that of its group's first row."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    mixed = np.flatnonzero(values != values[first][index])
    return int(mixed[0]) if mixed.size else None
