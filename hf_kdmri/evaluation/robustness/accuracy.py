"""How much accuracy models lose when the same pictures come corrupted: every model, corruption and severity.

The words: the *drop* of a corruption is clean accuracy minus the mean accuracy over its severities; the *mean
corruption accuracy drop* is the mean of the drops over corruptions, each counted once however many severities it has.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hf_kdmri.data.views import ViewDataset
from hf_kdmri.evaluation.report import escape_markdown
from hf_kdmri.evaluation.robustness.corruptions import SEVERITIES, check_corruptions, corrupt, corruption_title
from hf_kdmri.evaluation.statistics.bootstrap import MIN_GROUPS, draw_counts, estimate
from hf_kdmri.models import TimmClassifier, prepare_pixels
from hf_kdmri.wording import counted

DRAWS = 2000
Condition = tuple[str, int]  # corruption and severity; ("clean", 0) comes first


def evaluate_robustness(
    models: Mapping[str, TimmClassifier],
    views: ViewDataset,
    labels: ArrayLike | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    *,
    corruptions: Sequence[str] | None = None,
    max_images: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Classify every picture clean and under every corruption and severity, once for each model.

    All models see the very same corrupted view, each in its own size and normalisation. Only one batch is in memory.
    Models stay on their devices and return in the mode (training or eval) in which they came.

    Args:
        models: name to model, all with the same classes in the same order.
        views: pictures, best at the largest model's size: corruptions happen at the views' size.
        labels: (N,) class indices; default is `views.labels`.
        groups: (N,) patient ids; adds 95 % intervals over patients, by `bootstrap.estimate`.
        corruptions: keys of `corruptions.SEVERITIES`; default all.
        max_images: keep a random subset, in which each class has its share of the whole; default all.
        seed: draws the subset, the corruptions and the intervals.
        batch_size: pictures per forward pass.

    Returns:
        Plain Python, ready for JSON:

        - `n`, `n_patients` (None without groups), `seed`, `view_size` (pixels), `class_names`;
        - `severities`: corruption to its strengths;
        - `models`: name to `clean_accuracy`, `accuracy` (corruption to a list, one for each severity), `drop`
          (corruption to the mean over its severities), `mean_drop` over corruptions, `relative_drop` = `mean_drop` /
          `clean_accuracy` (None where that is 0), and `clean_accuracy_interval`, `mean_drop_interval` and, for each
          corruption, `drop_interval`: low and high, or None without groups, with too few or where all draws agree;
        - `seconds`, and `images_per_second`, a picture counted once for each condition and model.

        Accuracies and drops are fractions 0..1 of pictures.

    Raises:
        ValueError: no models, corruptions or pictures, classes that differ, lengths that do not match, an unknown
            corruption.
        ImportError: MONAI is needed and not installed.
    """
    names = list(SEVERITIES if corruptions is None else dict.fromkeys(corruptions))
    check_corruptions(names)
    truth = np.asarray(views.labels if labels is None else labels)
    _check(models, names, len(views), truth, groups)
    chosen = stratified_subset(truth, max_images, seed)
    conditions = [("clean", 0), *((name, level + 1) for name in names for level in range(len(SEVERITIES[name])))]
    started = time.perf_counter()
    correct = _correct(models, views, truth, chosen, conditions, seed, batch_size)
    seconds = time.perf_counter() - started
    kept = None if groups is None else np.asarray([str(group) for group in groups])[chosen]
    return {
        "n": len(chosen),
        "n_patients": None if kept is None else len(np.unique(kept)),
        "seed": seed,
        "view_size": views.size,
        "class_names": next(iter(models.values())).labels,
        "severities": {name: list(SEVERITIES[name]) for name in names},
        "models": {name: _summary(rows, conditions, kept, seed) for name, rows in correct.items()},
        "seconds": round(seconds, 2),
        "images_per_second": round(len(chosen) * len(conditions) * len(models) / seconds, 1),
    }


def stratified_subset(labels: ArrayLike, max_images: int | None, seed: int = 0) -> NDArray[np.int64]:
    """Draw pictures so that each class keeps its share; a smaller subset of the same seed lies in a larger one.

    Args:
        labels: (N,) class indices.
        max_images: how many; None, or N and more, is all.
        seed: of the draw.

    Returns:
        Positions, ascending.

    Raises:
        ValueError: `max_images` is below 1.

    Example:
        >>> labels = [0] * 6 + [1] * 3
        >>> [labels[i] for i in stratified_subset(labels, 3)]
        [0, 0, 1]
    """
    y = np.asarray(labels)
    if max_images is None or max_images >= len(y):
        return np.arange(len(y))
    if max_images < 1:
        raise ValueError(f"max_images is {max_images}; expected at least 1, or None for all")
    order = np.random.default_rng(seed).permutation(len(y))
    place = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")[:max_images]])


def accuracy_draws(
    correct: NDArray[np.bool_], groups: NDArray[Any], *, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Accuracies of samples in which patients, not pictures, are drawn with replacement.

    The pictures of a patient stand or fall together, so an interval over pictures would be too narrow.

    Args:
        correct: (K, N), whether picture n was right under condition k.
        groups: (N,) patient ids.
        draws: number of samples.
        seed: of the draw; equal seeds and groups draw the same patients, so differences are paired.

    Returns:
        (1 + draws, K) fractions; the first row is the sample itself.
    """
    patients, member = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(patients), len(correct) + 1))
    np.add.at(sums, member, np.vstack([correct, np.ones(correct.shape[1])]).T)
    totals = draw_counts(len(patients), draws, seed) @ sums
    return totals[:, :-1] / totals[:, -1:]


def robustness_table(results: Mapping[str, Any]) -> str:
    """Write the drops as a Markdown table in percentage points, one row for each corruption and the mean at the foot.

    Args:
        results: What `evaluate_robustness` returns.

    Returns:
        The table, with a line on what was measured below it and a newline at its end.
    """
    models = results["models"]
    lines = [["Accuracy lost [points]", *map(escape_markdown, models)], [":--", *["--:"] * len(models)]]
    lines.append(["clean accuracy", *(f"{100 * m['clean_accuracy']:.1f} %" for m in models.values())])
    for corruption in results["severities"]:
        lines.append([corruption_title(corruption), *(f"{_points(m['drop'][corruption])}" for m in models.values())])
    lines.append(["**mean over corruptions**", *(f"**{_points(m['mean_drop'])}**" for m in models.values())])
    if results["n_patients"] is not None:
        intervals = (m["mean_drop_interval"] for m in models.values())
        cells = ("–" if interval is None else " to ".join(map(_points, interval)) for interval in intervals)
        lines.append(["95 % interval over patients", *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    patients = "" if results["n_patients"] is None else f" of {counted(results['n_patients'], 'patient')}"
    few = f" Fewer than {MIN_GROUPS} patients allow no interval."
    return (
        f"{table}\n{counted(results['n'], 'picture')}{patients}, views of {results['view_size']} px, "
        f"seed {results['seed']}; each corruption is the mean over its severities."
        + (few if 0 < (results["n_patients"] or 0) < MIN_GROUPS else "")
        + "\n"
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _check(
    models: Mapping[str, TimmClassifier], corruptions: Sequence[str], n: int, labels: NDArray[Any], groups: Any
) -> None:
    if not models:
        raise ValueError("there are no models to test; expected at least one, as {name: model}")
    if not corruptions:
        raise ValueError(f"there are no corruptions to test; leave them out for all, or name some of {[*SEVERITIES]}")
    if not n:
        raise ValueError("there are 0 views; check the split")
    (first, model), *others = models.items()
    for name, other in others:
        if other.labels != model.labels:
            raise ValueError(
                f"{name} knows the classes {other.labels}, {first} {model.labels}; expected the same order"
            )
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}; expected ({n},), one for each view")
    if labels.min() < 0 or labels.max() >= len(model.labels):
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}; expected 0 to {len(model.labels) - 1}")
    if groups is not None and len(groups) != n:
        raise ValueError(f"there are {len(groups)} groups; expected {n}, a patient id for each view")


def _correct(
    models: Mapping[str, TimmClassifier],
    views: ViewDataset,
    labels: NDArray[Any],
    chosen: NDArray[np.int64],
    conditions: Sequence[Condition],
    seed: int,
    batch_size: int,
) -> dict[str, NDArray[np.bool_]]:
    """Whether each model is right: name to (conditions, pictures)."""
    correct = {name: np.zeros((len(conditions), len(chosen)), dtype=bool) for name in models}
    modes = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        for place, rows, number, (corruption, severity) in _steps(chosen, conditions, batch_size):
            batch = torch.from_numpy(np.stack([views.view(row) for row in rows]))
            if severity:
                batch = corrupt(batch, torch.from_numpy(rows), corruption, severity, seed=seed)
            for name, model in models.items():
                correct[name][number, place] = predict_classes(model, batch) == labels[rows]
    finally:
        for name, model in models.items():
            model.train(modes[name])
    return correct


def _steps(
    chosen: NDArray[np.int64], conditions: Sequence[Condition], batch_size: int
) -> Iterator[tuple[slice, NDArray[np.int64], int, Condition]]:
    """Every batch under every condition, with a progress bar on standard error if that is a terminal."""
    starts = range(0, len(chosen), batch_size)
    steps = [(start, number) for start in starts for number in range(len(conditions))]
    console = Console(stderr=True)
    for start, number in track(steps, "Corrupting", console=console, disable=not console.is_terminal):
        place = slice(start, min(start + batch_size, len(chosen)))
        yield place, chosen[place], number, conditions[number]


@torch.inference_mode()
def predict_classes(model: TimmClassifier, batch: Tensor) -> NDArray[np.int64]:
    """Classify views (B, C, H, W), uint8, in the model's own size and normalisation: (B,) class indices."""
    pixels = prepare_pixels(
        batch.to(model.device), image_size=model.image_size, mean=model.pixel_mean, std=model.pixel_std
    )
    return model(pixels.to(model.dtype)).logits.argmax(dim=1).cpu().numpy()


def _summary(
    correct: NDArray[np.bool_], conditions: Sequence[Condition], groups: NDArray[Any] | None, seed: int
) -> dict[str, Any]:
    """Accuracies, drops and, with groups, their intervals, of one model."""
    rows: dict[str, list[int]] = {}
    for number, (corruption, _) in enumerate(conditions):
        rows.setdefault(corruption, []).append(number)
    corrupted = list(rows.items())[1:]  # clean comes first
    average = np.zeros((len(conditions), len(corrupted)))  # accuracies of conditions to means of corruptions
    for column, (_, numbers) in enumerate(corrupted):
        average[numbers, column] = 1 / len(numbers)
    accuracy = correct.mean(axis=1)
    drops = accuracy[0] - accuracy @ average
    clean, mean = None, None
    each: dict[str, list[float] | None] = dict.fromkeys((name for name, _ in corrupted), None)
    if groups is not None:
        drawn, patients = accuracy_draws(correct, groups, seed=seed), len(np.unique(groups))
        lost = drawn[:, :1] - drawn @ average
        clean, mean = (estimate(values, patients)["interval"] for values in (drawn[:, 0], lost.mean(axis=1)))
        each = {name: estimate(lost[:, k], patients)["interval"] for k, name in enumerate(each)}
    return {
        "clean_accuracy": float(accuracy[0]),
        "clean_accuracy_interval": clean,
        "accuracy": {name: accuracy[numbers].tolist() for name, numbers in corrupted},
        "drop": dict(zip(each, drops.tolist(), strict=True)),
        "drop_interval": each,
        "mean_drop": float(drops.mean()),
        "mean_drop_interval": mean,
        "relative_drop": float(drops.mean() / accuracy[0]) if accuracy[0] else None,
    }
