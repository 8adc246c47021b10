"""What others offer for the same step: timm's tasks, torchdistill, and the recipe of the transformers guide."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contenders import TEMPERATURE, Contender, Pair
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_kdmri.models import prepare_pixels

DOCUMENTED, TUNED = "as documented", "with our precision and layout"
KEEPING = "with our precision, layout and memory"  # the same, in a process that keeps its memory


def timm_task(pair: Pair, *, features: bool, tuned: bool) -> Contender:
    """`timm.task`'s logit or feature distillation in a plain loop; both normalise for the teacher by themselves."""
    from timm.task import FeatureDistillationTask, LogitDistillationTask

    student, teacher = pair.student(tuned=tuned), pair.teacher(tuned=tuned)
    if tuned:
        _compute_in_teacher_dtype(teacher.timm_model, pair)
    task_class = FeatureDistillationTask if features else LogitDistillationTask
    temperature: dict[str, Any] = {} if features else {"temperature": TEMPERATURE}
    task = task_class(
        student.timm_model,
        teacher.timm_model,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=1.0,
        task_loss_weight=1.0,
        device=pair.device,
        verbose=False,
        **temperature,
    ).train()

    def run() -> dict[str, Tensor]:
        with pair.student_precision(tuned=tuned):
            return task(pair.pixels(student, tuned=tuned), pair.labels)

    step = pair.train_step(lambda: run()["loss"], task.trainable_module.parameters(), tuned=tuned)
    # Its features are compared by their squared difference, which has no counterpart in the reference.
    return Contender(step, lambda: run()["task_loss" if features else "loss"], (1.0, 0.0 if features else 1.0, 0.0))


def torchdistill_box(pair: Pair, *, tuned: bool) -> Contender:
    """The `DistillationBox` of torchdistill with its `KDLoss`, forward and post-forward process as in its examples."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = pair.student(tuned=tuned), pair.teacher(tuned=tuned)
    if tuned:
        _compute_in_teacher_dtype(teacher.timm_model, pair)
    numbers = {"temperature": TEMPERATURE, "alpha": 0.5, "reduction": "batchmean"}
    numbers |= {f"{side}_module_path": "." for side in ("student", "teacher")}
    numbers |= {f"{side}_module_io": "output" for side in ("student", "teacher")}
    box = get_distillation_box(
        _Renormalised(teacher.timm_model, teacher, student),
        student.timm_model,
        {},
        {
            "num_epochs": 1,
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
            "optimizer": {
                "key": "AdamW",
                "kwargs": {"lr": 0.0, "weight_decay": 0.0, **({"fused": True} if tuned else {})},
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": numbers}, "weight": 1.0}}},
            },
        },
        pair.device,
        None,
        False,
        1,
    )
    box.teacher_model.eval()
    box.student_model.train()

    def loss() -> Tensor:
        with pair.student_precision(tuned=tuned):
            return box.forward_process(pair.pixels(student, tuned=tuned), pair.labels, None)

    return Contender(lambda: box.post_forward_process(loss()), loss, (0.5, 0.5, 0.0))


class GuideTrainer(Trainer):
    """A Trainer whose `compute_loss` runs the teacher, as "Knowledge distillation for computer vision" has it."""

    def __init__(self, teacher: nn.Module, *, share: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher, self.share = teacher, share
        self.divergence = nn.KLDivLoss(reduction="batchmean")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """λ times T² · KL, and 1 − λ times the student's own loss."""
        output = model(**inputs)
        with torch.no_grad():
            told = self.teacher(inputs["pixel_values"])
        soft_teacher = F.softmax(told.logits / TEMPERATURE, dim=-1)
        soft_student = F.log_softmax(output.logits / TEMPERATURE, dim=-1)
        soft = self.divergence(soft_student, soft_teacher) * TEMPERATURE**2
        loss = (1 - self.share) * output.loss + self.share * soft
        return (loss, output) if return_outputs else loss


def transformers_guide(pair: Pair, *, tuned: bool) -> Contender:
    """The guide's recipe, with the image processor in the data set's transform and Trainer's own loader and step."""
    student, teacher = pair.student(tuned=tuned), pair.teacher(tuned=tuned)
    if tuned:
        _compute_in_teacher_dtype(teacher, pair)
    processor = TimmWrapperImageProcessor(student.config.pretrained_cfg)
    pictures = [Image.fromarray(view[0]) for view in pair.views.cpu().numpy()]
    labels = pair.labels.tolist()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> dict[str, Any]:
            pixels = processor(pictures[row].convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return {"pixel_values": pixels, "labels": labels[row]}

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(labels),
        learning_rate=0.0,
        report_to=[],
        bf16=tuned and pair.arguments.bf16,
        use_cpu=pair.device.type == "cpu",
        dataloader_pin_memory=pair.device.type != "cpu",
    )
    trainer = GuideTrainer(
        _Renormalised(teacher, teacher, student), share=0.5, model=student, args=arguments, train_dataset=Pictures()
    )
    trainer.current_gradient_accumulation_steps = 1  # training_step reads what its loop sets
    loader, optimiser = trainer.get_train_dataloader(), trainer.create_optimizer()

    def batch() -> dict[str, Tensor]:
        (only,) = loader  # the set is one batch
        if tuned:
            only["pixel_values"] = only["pixel_values"].contiguous(memory_format=torch.channels_last)
        return only

    def step() -> None:
        trainer.training_step(student, batch())
        optimiser.step()
        optimiser.zero_grad()

    def loss() -> Tensor:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(student, trainer._prepare_inputs(batch()))

    return Contender(step, loss, (0.5, 0.5, 0.0))


class _Renormalised(nn.Module):
    """A teacher that is given the student's input, as these two recipes do, and should see its own normalisation."""

    def __init__(self, called: nn.Module, teacher: Any, student: Any) -> None:
        super().__init__()
        self.called = called
        self.numbers = dict(image_size=teacher.image_size, mean=teacher.pixel_mean, std=teacher.pixel_std)
        self.numbers |= dict(source_mean=student.pixel_mean, source_std=student.pixel_std)

    def forward(self, pixels: Tensor) -> Any:
        return self.called(prepare_pixels(pixels, **self.numbers))


def _compute_in_teacher_dtype(teacher: nn.Module, pair: Pair) -> None:
    enabled = pair.teacher_dtype != torch.float32
    for name in ("forward", "forward_features", "forward_head"):
        if hasattr(teacher, name):
            computed = torch.autocast(pair.device.type, pair.teacher_dtype, enabled=enabled)(getattr(teacher, name))
            setattr(teacher, name, lambda *given, computed=computed, **named: _in_float32(computed(*given, **named)))


def _in_float32(said: Any) -> Any:
    # Some peers would take the softmax of bfloat16 numbers, and their loss would be another one.
    if isinstance(said, Tensor):
        return said.float()
    said.logits = said.logits.float()
    return said


def _all(build: Callable[..., Contender], name: str, **options: Any) -> dict[str, Callable[[Pair], Contender]]:
    ways = {DOCUMENTED: False, TUNED: True, KEEPING: True}
    return {f"{name}, {how}": partial(build, tuned=tuned, **options) for how, tuned in ways.items()}


PEERS: dict[str, Callable[[Pair], Contender]] = {
    **_all(timm_task, "timm.task logits", features=False),
    **_all(timm_task, "timm.task features", features=True),
    **_all(torchdistill_box, "torchdistill"),
    **_all(transformers_guide, "transformers guide"),
}


def find_peers(folder: str | None) -> tuple[list[str], list[str]]:
    """Names of the peers that can be run, and a line about each library that is not here.

    Args:
        folder: a further place to look for packages, as `pip install --target` makes one.
    """
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    if importlib.util.find_spec("torchdistill") is not None:
        return list(PEERS), []
    told = "torchdistill is left out: pip install 'hf_kdmri[peers]', or give --peers_path FOLDER with it"
    return [name for name in PEERS if not name.startswith("torchdistill")], [told]
