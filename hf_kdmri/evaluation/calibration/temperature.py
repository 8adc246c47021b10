"""One temperature that makes a model's confidence honest without changing a prediction (Guo et al., ICML 2017).

A temperature is fitted on validation slices only: fitted on test slices it reports its own fit, and on training slices,
which the network has learnt by heart, it comes out too small. So `fit_temperature` asks for the split's name and for
the groups (patients) of its rows, and the result refuses to score rows of a group that it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Groups: TypeAlias = Sequence[Any] | NDArray[Any]
TEMPERATURE_RANGE = (1e-3, 1e3)  # far wider than what networks need, which is about 0.5 to 5
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class FittedOn:
    """The rows that something was fitted on, so that it cannot be tested on them.

    Args:
        split: name of the split; one that names training or test rows is refused.
        n: rows.
        groups: ids of the patients (or patient groups) of these rows; None where they are not known.
    """

    split: str
    n: int
    groups: frozenset[str] | None

    def __post_init__(self) -> None:
        """Refuse a split that trained the model or tests it."""
        if not self.split or self.split.lower().startswith(("train", "test")):
            raise ValueError(
                f"the split is {self.split!r}; fit on validation rows, which neither trained the model nor test it"
            )

    @classmethod
    def of(cls, split: str, groups: Groups | None, n: int) -> FittedOn:
        """Describe n rows by their split and groups (n,); ids are compared as text.

        Raises:
            ValueError: a split of training or test rows, groups of another length, or a missing id.
        """
        return cls(split, n, None if groups is None else frozenset(group_ids(groups, n)))

    def refuse_overlap(self, groups: Groups | None, n: int) -> None:
        """Refuse n rows to be scored if one of their groups was fitted on; None on either side is not checked."""
        if groups is None or self.groups is None:
            return
        if shared := self.groups.intersection(group_ids(groups, n)):
            raise ValueError(
                f"{len(shared)} of the groups to be scored were fitted on (split {self.split!r}), the first is "
                f"{min(shared)!r}; score rows of other patients, or fit on a split that shares none with them"
            )


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature: probabilities are softmax(logits / value). Above 1 the model was too sure.

    Args:
        value: the temperature.
        fitted_on: what it was fitted on.
        nll_before: mean negative log likelihood of those rows at temperature 1, in nats.
        nll_after: likewise at `value`; never larger.
    """

    value: float
    fitted_on: FittedOn
    nll_before: float
    nll_after: float

    def __float__(self) -> float:
        """Return the temperature as a number, which is what a model's folder stores."""
        return self.value


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, split: str, groups: Groups | None) -> Temperature:
    """Find the temperature that minimises the negative log likelihood of validation rows.

    Log-probabilities serve as well as logits, since softmax(log p / T) = softmax(z / T): what a softmax forgets is one
    constant for each row. The likelihood is convex in 1/T, so there is one minimum; a single wrong prediction keeps it
    above 0, and scores that beat chance keep it finite.

    Args:
        logits: (N, C), logits or log-probabilities (`log_probabilities`), not probabilities.
        labels: (N,), integers 0..C-1.
        split: name of the split that the rows are from, "validation"; one that names training or test rows is refused.
        groups: (N,), patient ids of the rows, which `apply_temperature` then keeps from being scored. None only where
            no ids exist.

    Returns:
        The temperature with what it was fitted on.

    Raises:
        ValueError: shapes that do not match, values that are not finite, probabilities, labels of one class only, no
            wrong prediction among the rows, or scores no better than chance.

    Example:
        >>> z = np.array([[4.0, 0], [4, 0], [4, 0], [0, 4], [0, 4], [0, 4]])  # sure to 98 %, right in 2 of 3
        >>> temperature = fit_temperature(z, [0, 0, 1, 1, 1, 0], split="validation", groups=list("abcdef"))
        >>> round(temperature.value, 3), apply_temperature(z, temperature, groups=list("xxyyzz"))[0].round(3).tolist()
        (5.771, [0.667, 0.333])
    """
    z, y = _checked_logits(logits), np.asarray(labels)
    if y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer) or ((y < 0) | (y >= z.shape[1])).any():
        raise ValueError(
            f"labels have shape {y.shape} and type {y.dtype}; expected ({len(z)},) integers 0..{z.shape[1] - 1}, one "
            "for each row of logits"
        )
    fitted_on = FittedOn.of(split, groups, len(z))
    _refuse_without_minimum(z, y)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(z / np.exp(log_temperature), axis=1)[np.arange(len(y)), y].mean())

    # In log T, so that 1/2 and 2 are equally far from 1 and T stays above 0.
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURE_RANGE), method="bounded", options={"xatol": 1e-9})
    value = float(np.exp(found.x))
    if not 1.01 * TEMPERATURE_RANGE[0] < value < TEMPERATURE_RANGE[1] / 1.01:
        raise ValueError(
            f"the fit runs to an end of {TEMPERATURE_RANGE}: {value:.4g}; logits of ordinary size have their minimum "
            "well inside, so check what was passed"
        )
    return Temperature(value, fitted_on, nll_before=loss(0.0), nll_after=float(found.fun))


def apply_temperature(logits: ArrayLike, temperature: Temperature, *, groups: Groups | None) -> NDArray[np.float64]:
    """Turn logits into calibrated probabilities; the predicted classes stay as they were.

    Args:
        logits: (N, C), logits or log-probabilities.
        temperature: from `fit_temperature`.
        groups: (N,), patient ids of these rows, checked against those fitted on. None where there are none to check:
            new patients in use, or to look at the fit itself.

    Returns:
        (N, C), each row sums to 1.

    Raises:
        ValueError: a group was fitted on, or logits of the wrong shape or not finite.
    """
    z = _checked_logits(logits)
    temperature.fitted_on.refuse_overlap(groups, len(z))
    return softmax(z / temperature.value, axis=1)


def group_ids(groups: Groups, n: int) -> list[str]:
    """Return the ids of n rows as text.

    Raises:
        ValueError: another number of ids, or a missing one (None, NaN or "").
    """
    ids = ["" if group is None or group != group else str(group) for group in groups]
    if len(ids) != n:
        raise ValueError(f"there are {len(ids)} groups for {n} rows; expected one patient id for each row")
    if "" in ids:
        raise ValueError(f"the patient id in row {ids.index('')} is missing ({ids.count('')} such rows)")
    return ids


def log_probabilities(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Take the logarithm of probabilities, (N, C); 0, which float32 makes of anything below 1e-45, counts as 1.2e-38.

    Example:
        >>> log_probabilities([[1.0, 0.0]]).round(1).tolist()
        [[0.0, -87.3]]
    """
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _LEAST))


def _checked_logits(logits: ArrayLike) -> NDArray[np.float64]:
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or z.shape[1] < 2 or not len(z):
        raise ValueError(f"logits have shape {z.shape}; expected (N, C) with N >= 1 rows and C >= 2 classes")
    if (bad := np.flatnonzero(~np.isfinite(z).all(axis=1))).size:
        raise ValueError(
            f"logits in row {bad[0]} are not finite: {z[bad[0]].tolist()} ({bad.size} such rows). If they are "
            "logarithms of probabilities, take them with log_probabilities, which bounds log 0"
        )
    if (z >= 0).all() and np.allclose(z.sum(axis=1), 1, atol=1e-3):
        raise ValueError("these rows are probabilities (none below 0, each sums to 1); pass log_probabilities(rows)")
    return z


def _refuse_without_minimum(z: NDArray[np.float64], y: NDArray[np.integer]) -> None:
    """Refuse rows whose likelihood has no minimum at a temperature above 0 and below infinity."""
    if len(np.unique(y)) == 1:
        raise ValueError(
            f"all {len(y)} validation labels are of class {y[0]}; a temperature needs rows of at least two classes"
        )
    of_label = z[np.arange(len(y)), y]
    if (of_label == z.max(axis=1)).all():
        raise ValueError(
            f"none of the {len(y)} validation predictions is wrong, so the likelihood only grows as the temperature "
            "goes to 0; use more validation rows, or leave the model uncalibrated"
        )
    if of_label.mean() <= z.mean():
        raise ValueError(
            "the scores are no better than chance on these rows, so the likelihood only grows with the temperature; "
            "check that labels and logits have the same order of rows and classes"
        )
