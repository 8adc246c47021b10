"""The student's model card, from what a run keeps in `metrics.json`: it can be written again at any time."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hf_kdmri.distillation import LossOptions
from hf_kdmri.evaluation.statistics.summary_tables import TITLES
from hf_kdmri.hub import OwnDataFacts, StudentCardFacts, write_student_card
from hf_kdmri.hub.provenance import public_command, teacher_of
from hf_kdmri.hub.run_files import read_metrics, run_over_folds
from hf_kdmri.training.inputs import RunData, is_8_bit
from hf_kdmri.training.options import ModelOptions, RunOptions
from hf_kdmri.training.report.pooling import FinishedFold
from hf_kdmri.training.run_folder import RunFolder

_REENCODED = (
    "The slices of this run were 8-bit re-encodings of the published 16-bit files, with masks drawn from the published "
    "borders; retrain on the published files before you compare with results on them."
)
_LOGIT_PAPERS = {"kd": "hinton2015distilling", "dkd": "zhao2022decoupled", "dist": "huang2022stronger"}
_SAMPLE_PAPERS = {
    "rkd": "park2019relational",
    "similarity_preserving": "tung2019similarity",
    "cka": "kornblith2019similarity",
    "gromov_wasserstein": "peyre2016gromov",
}
_FEATURE_PAPERS = {
    "hint": "romero2015fitnets",
    "attention_transfer": "zagoruyko2017paying",
    "review": "chen2021review",
    "ofa": "hao2023one",
    "partial_cross_attention": "liu2022cross",
    "groupwise_linear": "liu2022cross",
    "masked_generation": "yang2022masked",
    "orthogonal_projection": "miles2024vkd",
}
_OF_EVERY_RUN = ("guo2017calibration", "selvaraju2017gradcam", "wightman2019timm")
_TEACHER_TOO = ", teacher too"
_CROSS_ENTROPY, _MASK = _OF_LABELS = ("cross-entropy", "drawing the tumour mask (cross-entropy and Dice)")


def card_facts(options: RunOptions, data: RunData) -> dict[str, Any]:
    """What only the card needs, ready for JSON; `metrics.json` keeps it under `run.card`.

    Args:
        options: of the run.
        data: of the run.
    """
    training = options.training
    own = _own_data_facts(data)
    return {
        "model_name": f"kdmri-{options.model.student_architecture}",
        "losses": losses_text(training.loss_options()),
        "first_weights": first_weights(options.model),
        "cited": methods_cited(training.loss_options()),
        "data_note": _REENCODED if own is None and is_8_bit(data.splits) else "",
        "own_data": None if own is None else asdict(own),
        "repo_id": training.hub_model_id,
        "base_model": teacher_of(options.as_dict(), "").get("hub_id"),
    }


def write_card(
    fold: FinishedFold,
    rows: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    *,
    pooled_folds: Sequence[int] = (),
    stage: str = "student",
) -> Path | None:
    """Write the model card of one fold's student.

    Args:
        fold: whose student it is.
        rows: one per model, of all folds together where they are pooled.
        evaluation: as `evaluate_folds` gives it.
        pooled_folds: what rows and evaluation are pooled over; empty, or one, where they are of one fold.
        stage: "student", or "baseline" for the one without a teacher.

    Returns:
        The card; None where the run is from before its facts were kept, whose card stays as it is.
    """
    facts, kept = fold.facts, fold.facts.get("card")
    if kept is None:
        return None
    alone = stage == "baseline"
    return write_student_card(
        fold.run.model_folder(stage),
        StudentCardFacts(
            model_name=kept["model_name"],
            results=list(rows.values()),
            teacher=rows["teacher"]["architecture"] if "teacher" in rows else "none",
            losses=_losses_of_labels(kept["losses"]) if alone else kept["losses"],
            first_weights=kept.get("first_weights", {}),
            split=facts["split"],
            fold=facts["fold"],
            seed=facts["seed"],
            training_command=public_command(shlex.split(facts["command"])),
            versions=facts["versions"],
            machine=facts["machine"],
            phantom=facts["phantom"],
            data_note=kept["data_note"],
            own_data=None if kept["own_data"] is None else OwnDataFacts(**kept["own_data"]),
            repo_id=kept["repo_id"],
            evaluation=evaluation,
            pooled_folds=pooled_folds if len(pooled_folds) > 1 else (),
            base_model=None if alone else kept["base_model"],
            cited=[paper for paper in kept["cited"] if not alone or paper in _OF_EVERY_RUN],
            described=TITLES[stage],
        ),
    )


def write_card_of_baseline(path: Path) -> Path:
    """Write into a finished run's `baseline/` the card of the student that had no teacher; one that is there stays.

    Args:
        path: folder of a run of one fold, or of a fold of several.

    Raises:
        FileNotFoundError: the run is not finished, has several folds, or trained no such student.
        ValueError: it is from before what a card needs was kept.
    """
    metrics = read_metrics(path)
    if "baseline" not in metrics["models"]:
        raise FileNotFoundError(f"{path} has no student alone: it was trained with --no_baseline")
    fold = FinishedFold(RunFolder(path), metrics["run"], metrics["models"])
    if (there := fold.run.model_folder("baseline") / "README.md").is_file():
        return there
    if "evaluation" not in metrics:  # a fold of several, whose figures are with the run
        whole = run_over_folds(path)
        told = None if whole is None else RunFolder(whole).read_metrics()
        if told is None:
            raise FileNotFoundError(f"{path.resolve().parent} is a run that is not finished: run train_kd.py again")
        metrics = told
    folds = metrics["run"].get("folds") or ()
    card = write_card(fold, metrics["models"], metrics["evaluation"], pooled_folds=folds, stage="baseline")
    if card is None:
        raise ValueError(f"{path} was made before runs kept what a card tells; train it again")
    return card


def first_weights(options: ModelOptions) -> dict[str, str]:
    """What teacher and student started from, in a few words each.

    A file's own account of itself stands behind its name, where its metadata have an `origin`.
    """
    if options.teacher is not None:
        name = teacher_of({"teacher": options.teacher}, "").get("hub_id", Path(options.teacher).name)
        teacher = f"taken as it is from {name}"
    elif options.teacher_pretrained:
        teacher = "timm's ImageNet weights"
    else:
        teacher = _file_text(options.teacher_weights)
    return {"teacher": teacher, "student": _file_text(options.student_weights)}


def _file_text(weights: str | None) -> str:
    if weights is None:
        return "untrained"
    path = Path(weights)
    if not path.is_file():  # gone since: a finished stage goes on without it
        return path.name
    with safe_open(path, "pt") as file:
        origin = (file.metadata() or {}).get("origin")
    return path.name + (f": {origin}" if origin else "")


def losses_text(options: LossOptions) -> dict[str, str]:
    """Each term of the loss that is on, with its settings."""
    smoothing = f", labels smoothed by {options.label_smoothing_factor}" if options.label_smoothing_factor else ""
    logit = {"kd": "Hinton distillation", "dkd": "decoupled distillation (DKD)", "dist": "DIST"}[options.logit_loss]
    standardised = ", logits standardised" if options.standardize_logits else ""
    kernel = "" if options.geometry_difference == "squared" else f", compared by {options.geometry_difference}"
    lesions = ", positions weighted by the tumour mask" if options.lesion_weighting else ""
    losses = {_CROSS_ENTROPY: f"weight 1{smoothing}"}
    if options.logit_weight > 0:
        losses[logit] = f"weight {options.logit_weight}, temperature {options.temperature}{standardised}"
    if options.geometry_weight > 0:
        grid = f"grid {options.geometry_grid}{kernel}{lesions}"
        losses["fused spatial similarity"] = f"weight {options.geometry_weight}, {grid}"
    others = {
        f"geometry between images ({options.sample_loss})": options.sample_weight,
        "exit behind the top-down fusion": options.exit_weight,
        f"features ({options.feature_loss})": options.feature_weight,
    }
    losses |= {name: f"weight {weight}" for name, weight in others.items() if weight > 0}
    if options.mask_weight > 0:
        losses[_MASK] = f"weight {options.mask_weight}{_TEACHER_TOO}"
    if options.shuffle_teacher:
        losses["control"] = "each image was taught with another one's teacher outputs"
    return losses


def _losses_of_labels(losses: Mapping[str, str]) -> dict[str, str]:
    """The terms that a student has without a teacher."""
    return {name: losses[name].removesuffix(_TEACHER_TOO) for name in _OF_LABELS if name in losses}


def methods_cited(options: LossOptions) -> list[str]:
    """Entries of `model_cards/citations.bib` for the losses that are on, and for what every run measures with."""
    papers = {
        "logit": [_LOGIT_PAPERS[options.logit_loss], *(["sun2024logit"] if options.standardize_logits else [])],
        "geometry": ["liu2019structured"],
        "sample": [_SAMPLE_PAPERS[options.sample_loss]],
        "exit": ["chen2021review", "hao2023one"],
        "feature": [_FEATURE_PAPERS[options.feature_loss]],
    }
    cited = [paper for term in options.terms for paper in papers[term]]
    return list(dict.fromkeys([*cited, *_OF_EVERY_RUN]))


def _own_data_facts(data: RunData) -> OwnDataFacts | None:
    own = data.own
    if own is None:
        return None
    return OwnDataFacts(
        name=own.name,
        hub_id=own.hub_id,
        counts={split: dict(data.counts(split)) for split in data.splits},
        group_column=own.group_column,
        groups=data.group_counts,
        one_class_per_group=own.one_class_per_group,
        drawn=list(own.drawn),
        grey=own.grey,
        wide_images=own.wide_images,
        # The first warning of a set without groups is the leak's, which the card's section on the split tells.
        warnings=[*own.warnings[own.group_column is None :], *own.notes],
    )
