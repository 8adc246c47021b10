"""The stages of a run: train one model, with or without a teacher, and predict with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from transformers import EvalPrediction, set_seed
from transformers.trainer_callback import ProgressCallback

from hf_kdmri.data.augmentation import VIEW_STYLES
from hf_kdmri.data.streams import StreamedViews
from hf_kdmri.data.views import ViewDataset, collate_views
from hf_kdmri.distillation import DistillationModel, teacher_column_order
from hf_kdmri.models import StudentForImageClassification, TeacherForImageClassification, TimmClassifier
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.callbacks import HistoryWriter, StageProgress
from hf_kdmri.training.options import RunOptions, timm_arguments
from hf_kdmri.training.reliability.checkpoints import checkpoints_in
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.trainer import DistillationTrainer

STAGES = ("teacher", "baseline", "student")


def build_teacher(options: RunOptions, labels: list[str]) -> TeacherForImageClassification:
    """The untrained (or ImageNet-trained) teacher that a run fine-tunes."""
    set_seed(options.training.seed)
    return TeacherForImageClassification.from_timm(
        options.model.teacher_architecture,
        labels=labels,
        image_size=options.model.teacher_image_size,
        pretrained=options.model.teacher_pretrained,
        weights=options.model.teacher_weights,
        drop_path_rate=options.model.teacher_drop_path_rate,
        num_scales=options.model.num_scales,
    )


def build_student(options: RunOptions, labels: list[str]) -> StudentForImageClassification:
    """The student; baseline and distilled student start from the same weights."""
    set_seed(options.training.seed)
    return StudentForImageClassification.from_timm(
        options.model.student_architecture,
        labels=labels,
        image_size=options.model.student_image_size,
        weights=options.model.student_weights,
        drop_path_rate=options.model.student_drop_path_rate,
        model_args=timm_arguments(options.model.student_model_args),
        num_scales=options.model.num_scales,
    )


def build_models(options: RunOptions, labels: list[str], run: RunFolder) -> dict[str, TimmClassifier]:
    """Every stage's model: finished ones from the run folder, others as they start."""
    models: dict[str, TimmClassifier] = {}
    if run.has_model("teacher"):
        models["teacher"] = TeacherForImageClassification.from_pretrained(run.model_folder("teacher"))
    elif options.model.teacher is not None:
        models["teacher"] = TeacherForImageClassification.from_pretrained(options.model.teacher)
    else:
        models["teacher"] = build_teacher(options, labels)
    teacher_column_order(labels, models["teacher"].labels)  # refuses other classes now, not after hours
    wanted = {"baseline": options.model.baseline, "student": True}
    for stage, on in wanted.items():
        if on and not options.model.teacher_only:
            if run.has_model(stage):
                models[stage] = StudentForImageClassification.from_pretrained(run.model_folder(stage))
            else:
                models[stage] = build_student(options, labels)
    return models


def train_stage(
    stage: str,
    model: TimmClassifier,
    teacher: TimmClassifier | None,
    train_views: ViewDataset | StreamedViews,
    validation_views: ViewDataset,
    options: RunOptions,
    run: RunFolder,
    *,
    image_names: Sequence[Any] | None = None,
) -> None:
    """Train one model to the end, from the last checkpoint where there is one, and save it in the run folder.

    Args:
        stage: "teacher", "baseline" or "student".
        model: what trains; it is changed in place.
        teacher: what it learns from, or None.
        train_views: what it trains on.
        validation_views: what it is validated on, in its own input size.
        options: of the run.
        run: the run's folder.
        image_names: what the training images are called where one is named in a message; default their position.

    Raises:
        NotFiniteError, CheckpointError, DataWorkerError, Stopped: as `DistillationTrainer.train`.
    """
    if teacher is not None and options.training.shard_teacher:
        # Sharding is for good, and the test asks a whole teacher: what is divided is a copy, read by every process.
        teacher = TeacherForImageClassification.from_pretrained(run.model_folder("teacher"))
    trainer = DistillationTrainer(
        model=DistillationModel(model, teacher),
        args=_stage_arguments(stage, options, run),
        augmentation=VIEW_STYLES[options.data.view_style] if options.data.augment else None,
        train_dataset=train_views,
        eval_dataset=validation_views,
        data_collator=collate_views,
        compute_metrics=_validation_metrics,
        callbacks=[HistoryWriter(stage, run)],
        image_names=image_names,
    )
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StageProgress)
    begun = bool(checkpoints_in(run.checkpoints(stage)))
    last = trainer.find_checkpoint()
    if trainer.is_world_process_zero() and begun:
        print(f"  {stage}: {f'goes on from {last}' if last else 'begins anew'}", flush=True)
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        run.save_model(stage, model)
    trainer.accelerator.wait_for_everyone()


def predict_probabilities(
    model: TimmClassifier, views: ViewDataset, arguments: DistillationTrainingArguments
) -> np.ndarray:
    """Class probabilities of every view, computed by all processes together.

    Args:
        model: the model; `views` must have its input size.
        views: N views.
        arguments: for batch size, device and precision.

    Returns:
        (N, C) float64 in the views' order, each row summing to 1; the same on every process.
    """
    if views.size != model.image_size:
        raise ValueError(f"the views have {views.size} pixels, the model expects {model.image_size}")
    # Full precision: reported numbers are those of the saved weights, as any user's pipeline gives them.
    arguments = dataclasses.replace(
        arguments, bf16=False, fp16=False, shard_teacher=False, push_to_hub=False, eval_strategy="no"
    )
    arguments.bf16, arguments.mixed_precision = False, "no"  # also where accelerate's configuration asked for bf16
    trainer = DistillationTrainer(model=DistillationModel(model), args=arguments, data_collator=collate_views)
    trainer.is_deepspeed_enabled = False  # it would ask for ZeRO-3; each process has the whole model
    logits = trainer.predict(views).predictions
    return torch.from_numpy(logits).double().softmax(1).numpy()


def _stage_arguments(stage: str, options: RunOptions, run: RunFolder) -> DistillationTrainingArguments:
    changes: dict[str, Any] = {"output_dir": str(run.checkpoints(stage)), "push_to_hub": False}
    if stage == "teacher":
        if options.model.teacher_num_train_epochs is not None:
            changes["num_train_epochs"] = options.model.teacher_num_train_epochs
        if options.model.teacher_learning_rate is not None:
            changes["learning_rate"] = options.model.teacher_learning_rate
    return dataclasses.replace(options.training, **changes)


def _validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    classes, every_class = logits.argmax(1), list(range(logits.shape[1]))
    return {
        "accuracy": float((classes == labels).mean()),
        "macro_f1": float(f1_score(labels, classes, labels=every_class, average="macro", zero_division=0)),
    }
