"""What the finished models of one fold say of images they never saw: predictions, saliency, corruptions."""

from __future__ import annotations

import json
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState

from hf_kdmri.data.views import ViewDataset, prepare_views
from hf_kdmri.distillation import teacher_column_order
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.inference import save_temperature
from hf_kdmri.models import TimmClassifier, prepare_pixels
from hf_kdmri.training.inputs import RunData, views_of
from hf_kdmri.training.options import OptionError, RunOptions
from hf_kdmri.training.report.pooling import temperature_of
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import predict_probabilities
from hf_kdmri.whole_files import write_whole

SPLITS = ("validation", "test")
_POINTING_POSITIONS = 6  # a side
_BATCH = 32  # images per forward and backward pass of the saliency maps


def predict_splits(
    models: dict[str, TimmClassifier], data: RunData, options: RunOptions, run: RunFolder, state: PartialState
) -> Predictions:
    """Predict validation and test images with every model, and keep both as Parquet in the run folder.

    The probabilities are those of the saved weights in full precision. The temperature that the validation images ask
    for is written into each model's config; the logits do not change.

    Returns:
        The test predictions.
    """
    predictions = {}
    for name in SPLITS:
        split, probabilities = data.splits[name], {}
        for stage, model in models.items():
            views = views_of(split, model.image_size, options, state)
            columns = teacher_column_order(data.labels, model.labels)
            probabilities[stage] = predict_probabilities(model, views, options.training)[:, columns]
        predictions[name] = as_predictions(split, data, probabilities)
        if state.is_main_process:
            predictions[name].write(run.predictions_file(name))
    if state.is_main_process:
        for stage in models:
            temperature = temperature_of(predictions["validation"], stage)
            if isinstance(temperature, str):
                state.print(f"[5/5] {stage}: no temperature is stored: {temperature}")
                save_temperature(run.model_folder(stage), None)  # nor one that came with a given teacher
            else:
                save_temperature(run.model_folder(stage), temperature)
    return predictions["test"]


def as_predictions(split: datasets.Dataset, data: RunData, probabilities: dict[str, np.ndarray]) -> Predictions:
    """Probabilities with what is known of each image.

    Images of a user's own set are numbered by their place in the whole set. One that names no group is a group of its
    own; a group with images of several classes is divided by class, since patients of one class are what is resampled.
    """
    labels, count = split["label"][:], len(split)
    fold = data.fold or 0
    slices = split["slice"][:]
    groups = split["patient_group"][:] if data.has_groups else [f"image {number}" for number in slices]
    if data.has_groups and data.own is not None and not data.own.one_class_per_group:
        groups = [f"{group}, {data.labels[label]}" for group, label in zip(groups, labels, strict=True)]
    attributes: dict[str, Any] = {}
    if "plane" in split.column_names:
        attributes["plane"] = [split.features["plane"].names[plane] for plane in split["plane"][:]]
    if "height" in split.column_names:
        attributes["height"] = split["height"][:]
    if "mask" in split.column_names:
        attributes["lesion_area"] = [float((np.asarray(mask) > 127).mean()) for mask in split["mask"]]
    return Predictions(
        slices=slices,  # type: ignore[arg-type]  # this list and the others are converted
        pids=split["pid"][:] if "pid" in split.column_names else groups,  # type: ignore[arg-type]
        patient_groups=groups,  # type: ignore[arg-type]
        folds=[fold] * count,  # type: ignore[arg-type]
        labels=labels,
        class_names=tuple(data.labels),
        probabilities=probabilities,
        attributes=attributes,
        disjoint_groups=data.split_is_disjoint,
    )


def look_where(
    models: dict[str, TimmClassifier], data: RunData, predictions: Predictions, options: RunOptions, run: RunFolder
) -> None:
    """Score every model's Grad-CAM of the true class against the tumour masks of the test images, and draw a sheet.

    Writes `saliency.json`: per model the scores of each image, by slice, and why a model has none. Nothing is written
    where the data have no masks.
    """
    test = data.splits["test"]
    if not options.evaluation.saliency or "mask" not in test.column_names:
        return
    told: dict[str, Any] = {}
    refused: dict[str, str] = {}
    images, masks = test["image"][:], test["mask"][:]
    for stage, model in models.items():
        views = _test_views(data, model.image_size, options)
        try:
            told[stage], maps, scores = _scored_maps(model, views, data, predictions, images, masks)
        except ValueError as error:  # an architecture whose layers cannot be laid out as maps; its training stands
            refused[stage] = str(error)
            print(f"[5/5] {stage}: where it looks is not measured: {error}")
            continue
        if stage == "student":
            _draw_sheet(maps, scores, data, predictions, options, run)
    write_whole(run.saliency_file, json.dumps({"models": told, "refused": refused}) + "\n")


def _test_views(data: RunData, size: int, options: RunOptions) -> ViewDataset:
    """Views of the test images for one process alone; `views_of` would wait for the others."""
    return prepare_views(data.splits["test"], size, num_proc=options.data.preprocessing_num_workers)


def _scored_maps(
    model: TimmClassifier, views: ViewDataset, data: RunData, predictions: Predictions, images: Any, masks: Any
) -> tuple[dict[str, Any], np.ndarray, Any]:
    from hf_kdmri.evaluation.saliency.maps import saliency_layer
    from hf_kdmri.evaluation.saliency.scores import saliency_scores

    first = _pixels(model, views, [0])
    stage = _pointing_stage(model, first)
    maps = np.concatenate(list(_maps(model, views, data, stage)))
    scores = saliency_scores(maps, images, masks)
    told = {
        "layer": str(saliency_layer(model, first, stage=stage)),
        "slice": predictions.slices.tolist(),
        **{
            name: [None if np.isnan(value) else float(value) for value in getattr(scores, name)]
            for name in ("hit", "tolerant_hit", "energy", "chance", "tolerant_chance")
        },
        "problems": list(scores.problems),
    }
    return told, maps, scores


def _pointing_stage(model: TimmClassifier, pixels: torch.Tensor) -> int:
    """The deepest stage whose map has at least `_POINTING_POSITIONS` a side, or the finest where none has.

    A map of 2 × 2 positions, which some small students end in, has its highest point in a corner and cannot point.
    """
    from hf_kdmri.evaluation.saliency.maps import saliency_layer

    stages = range(-1, -len(model.stage_channels) - 1, -1)
    for stage in stages:
        layer = saliency_layer(model, pixels, stage=stage)
        if min(layer.height, layer.width) >= _POINTING_POSITIONS:
            return stage
    return stages[-1]


def _maps(model: TimmClassifier, views: ViewDataset, data: RunData, stage: int) -> Any:
    from hf_kdmri.evaluation.saliency.maps import saliency_maps

    order = np.asarray(teacher_column_order(data.labels, model.labels))  # the model's column of each of our classes
    for start in range(0, len(views), _BATCH):
        rows = list(range(start, min(len(views), start + _BATCH)))
        target = torch.from_numpy(order[views.labels[rows]])
        yield saliency_maps(model, _pixels(model, views, rows), target=target, stage=stage).cpu().numpy()


def _pixels(model: TimmClassifier, views: ViewDataset, rows: list[int]) -> torch.Tensor:
    return prepare_pixels(
        views.__getitems__(rows)["pixel_values"].to(model.device),
        image_size=model.image_size,
        mean=model.pixel_mean,
        std=model.pixel_std,
    )


def _draw_sheet(
    maps: np.ndarray, scores: Any, data: RunData, predictions: Predictions, options: RunOptions, run: RunFolder
) -> None:
    from hf_kdmri.evaluation.saliency.figures import plot_saliency_sheet

    test = data.splits["test"]
    plot_saliency_sheet(
        test["image"][:],
        test["mask"][:],
        list(maps),
        predictions.labels.tolist(),
        predictions.predicted("student").tolist(),
        scores,
        data.labels,
        run.path / "figures" / "saliency",
        seed=options.training.seed,
        subtitle=f"Distilled student, {data.title}, test {data.unit} drawn at random; Grad-CAM of the true class",
    )


def check_class_order(models: dict[str, TimmClassifier], data: RunData, options: RunOptions) -> None:
    """Refuse, before anything is trained, models that cannot be tested under corruptions.

    Raises:
        OptionError: a model names its classes in another order than the data.
    """
    if not options.evaluation.robustness_images:
        return
    for stage, model in models.items():
        if model.labels != data.labels:
            raise OptionError(
                f"the {stage}'s classes are {model.labels}, the data's {data.labels}; corruptions need one order: set "
                "robustness_images to 0, or save the model with its classes in the data's order"
            )


def corrupt_images(
    models: dict[str, TimmClassifier], data: RunData, options: RunOptions, run: RunFolder
) -> dict[str, Any] | None:
    """Test every model under corruptions, on at most `robustness_images` test images.

    Returns:
        As `hf_kdmri.evaluation.robustness.accuracy.evaluate_robustness`, kept in `robustness.json`; None where none are
        asked for.

    """
    from hf_kdmri.evaluation.robustness.accuracy import evaluate_robustness

    if not options.evaluation.robustness_images:
        return None
    size = max(model.image_size for model in models.values())
    views = _test_views(data, size, options)
    told = evaluate_robustness(
        models,
        views,
        groups=data.groups("test"),
        max_images=options.evaluation.robustness_images,
        seed=options.training.seed,
    )
    write_whole(run.robustness_file, json.dumps(told) + "\n")
    return told
