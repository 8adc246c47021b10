"""A `Trainer` for `DistillationModel`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.mixing import mix_views
from hf_kdmri.data.views import ViewDataset
from hf_kdmri.distillation import DistillationModel
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.averaging import AveragedTrainer
from hf_kdmri.training.compiling import check_compiler
from hf_kdmri.training.deepspeed_runs import use_plain_layout
from hf_kdmri.training.hub_push import StudentPush
from hf_kdmri.training.sharding import refuse_other_wrappers, shard_teacher
from hf_kdmri.training.streaming import StreamingTrainer
from hf_kdmri.training.teacher_cache import TeacherCache, TeacherCacheError, cache_facts, is_finished
from hf_kdmri.training.teacher_cache_build import prepare_teacher_cache
from hf_kdmri.training.teacher_precision import check_teacher_precision, rows_to_look_at

HEAD_FILE = "distillation_head.safetensors"
STUDENT_FILE = "model.safetensors"


class DistillationTrainer(AveragedTrainer, StudentPush, StreamingTrainer):
    """Train a `DistillationModel`: cross-entropy, and what the teacher adds.

    A checkpoint is the student's own folder (loadable by `from_pretrained`), `distillation_head.safetensors` if
    anything trains beside the student, and the optimiser's state; the teacher is never saved. With `ema_decay` the
    student in it is the average of `AveragedTrainer`. Every term of the loss is logged apart (`loss_ce`, `loss_logit`,
    `loss_geometry`, …), unweighted, as is the accuracy on the training views.

    All terms are means over a micro-batch. Those that relate two images (`sample`, and `dist` on the logits) see the
    batches of all processes at once, but not those of other accumulation steps: there, 4 × 8 is not 32. The others do
    not depend on how a batch is divided over accumulation steps or processes (of equal size).

    Args:
        model: a `DistillationModel`.
        args: `DistillationTrainingArguments`. With `shard_teacher`, the model's teacher is changed in place, see
            `hf_kdmri.training.sharding.shard_teacher`.
        augmentation: draws one view per image for training, given batches with an `index`; None trains on the views
            as they are.
        **kwargs: passed on to `GuardedTrainer` (`image_names`) and `transformers.Trainer`.

    Raises:
        TypeError: the model is no `DistillationModel`.
        ValueError: the model was built with other loss options than the arguments'; or accelerate's FSDP or DeepSpeed
            ZeRO-3 was asked for, which would divide the student.
    """

    loss_is_scaled_for_ga = False  # per-batch means: Trainer divides by the accumulation steps

    def __init__(
        self,
        model: DistillationModel,
        args: DistillationTrainingArguments,
        *,
        augmentation: RandomViews | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, DistillationModel):
            raise TypeError(
                f"expected a DistillationModel, got {type(model).__name__}: DistillationModel(student, teacher)"
            )
        refuse_other_wrappers(args)
        if model.chosen_loss_options not in (None, args.loss_options()):
            raise ValueError(
                f"the model was built with {model.chosen_loss_options}, the arguments say {args.loss_options()}: "
                "give the numbers of the loss in one place, in DistillationTrainingArguments"
            )
        if model.loss_options != args.loss_options():
            # Heads start alike on every process and however much was trained before in this one.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)
                model.use_loss_options(args.loss_options())
        if args.teacher_torch_dtype() is not None:
            model.teacher_dtype = args.teacher_torch_dtype()
        if args.channels_last and not model.channels_last:
            model.use_channels_last()
        if args.deepspeed_plugin is not None:
            use_plain_layout(model)  # inputs stay channels-last
        if args.shard_teacher and model.teacher is not None and model.loss_options.terms:
            shard_teacher(model, args.device)
        self._term_sums: dict[str, Tensor] = {}
        self._term_count = 0
        self._hits: Tensor | float = 0.0  # right images and all images since the last log; a short batch counts less
        super().__init__(model=model, args=args, **kwargs)
        self.augmentation = augmentation
        # accelerate fills up the last batch of each process; a stream has full batches only
        model.equal_batches = self.accelerator.even_batches
        self.teacher_cache: TeacherCache | None = None
        self._began: float | None = None  # of training in this process
        self._seconds_before: float | None = None  # of training until the checkpoint that this process went on from

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train` does, after the teacher cache was opened or built where one is asked for.

        Meanwhile the teacher is asked by a faster copy, see `DistillationModel.faster_teacher`, but for one that is
        sharded, or under DeepSpeed.

        Raises:
            OptionError: compile_teacher where torch.compile finds no compiler; or in the precision asked for the
                teacher's answers are others (`check_teacher_precision`).
            TeacherCompileError: compile_teacher, and this teacher cannot be compiled.
        """
        model = self._distillation_model()
        taught = model.teacher is not None and bool(model.loss_options.terms)
        if taught and self.args.teacher_cache is not None:
            self.teacher_cache = self._prepare_teacher_cache(model)
        with self._faster_teacher(model, needed=taught and self.teacher_cache is None):
            self._began = time.monotonic()
            return super().train(*args, **kwargs)

    @contextmanager
    def _faster_teacher(self, model: DistillationModel, *, needed: bool) -> Iterator[None]:
        # Sharding and DeepSpeed hold the weights in ways of their own.
        if not needed or self.args.shard_teacher or self.is_deepspeed_enabled:
            yield
            return
        told = self.is_world_process_zero() and not self.args.disable_tqdm
        if self.args.compile_teacher:
            check_compiler(self.args.device)
            if told:
                print("  compiling the teacher, which takes a minute or so", flush=True)
        with model.faster_teacher(compiled=self.args.compile_teacher):
            if isinstance(self.train_dataset, ViewDataset):
                batch = self.train_dataset.__getitems__(rows_to_look_at(len(self.train_dataset)))
                views = batch["pixel_values"].to(self.args.device)
                moved = check_teacher_precision(model, views, self.accelerator.autocast)
                if moved is not None and told:
                    print(f"  {moved}", flush=True)
            yield

    def _prepare_teacher_cache(self, model: DistillationModel) -> TeacherCache:
        if not isinstance(self.train_dataset, ViewDataset):
            raise TeacherCacheError("a teacher cache needs views made by prepare_views as train_dataset")
        views_per_image = self.args.count_views() if self.augmentation is not None else 1
        facts = cache_facts(
            model,
            self.train_dataset,
            self.augmentation,
            seed=self.args.seed,
            views_per_image=views_per_image or 1,
            precision=str(model.teacher_dtype or self.accelerator.mixed_precision),
        )
        folder = Path(str(self.args.teacher_cache))
        with self._faster_teacher(model, needed=not is_finished(folder)):
            return prepare_teacher_cache(
                folder,
                model,
                self.train_dataset,
                self.augmentation,
                facts,
                device=self.args.device,
                batch_size=self.args.per_device_eval_batch_size,
                precision=self.accelerator.autocast,
                progress=not self.args.disable_tqdm,
            )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Augment, run both models on the same view, and weigh the terms.

        Args:
            model: the (wrapped) `DistillationModel`.
            inputs: `pixel_values` (B, C, H, W), `labels` (B,), `index` (B,) where views are augmented, best a NumPy
                array, which stays on the host, `masks` (B, 1, H, W) where positions are weighted by them, and `epoch`
                (B,) where a stream counts its passes.
            return_outputs: also return the logits.
            num_items_in_batch: not used; every term is a mean over the batch.

        Returns:
            The loss, a scalar; with `return_outputs`, also `{"loss", "logits"}`.
        """
        pixel_values, labels, masks = inputs["pixel_values"], inputs["labels"], inputs.get("masks")
        view, targets = self._view_of_this_epoch(inputs.get("epoch")), None
        if model.training and self.augmentation is not None:
            pixel_values, masks = self.augmentation.with_masks(
                pixel_values, masks, inputs["index"], seed=self.args.seed, epoch=view
            )
        if model.training and self.args.mixup > 0:
            pixel_values, masks, labels = mix_views(
                pixel_values,
                masks,
                labels,
                inputs["index"],
                alpha=self.args.mixup,
                classes=len(self._distillation_model().student.labels),
                seed=self.args.seed,
                epoch=self._epoch(inputs.get("epoch")),
            )
        if model.training and self.teacher_cache is not None:
            assert isinstance(view, int)  # a stream has no cache
            targets = self.teacher_cache.read(self.args, inputs["index"], view, pixel_values.device)
        outputs = model(pixel_values, labels=labels, masks=masks, targets=targets)
        loss = outputs["loss"]
        if model.training:
            if self._distillation_model().loss_options.warms_up:
                progress = self.state.global_step / max(1, self.state.max_steps)
                loss = self._distillation_model().total(outputs["terms"], progress)
            batch = {"pixel_values": pixel_values, "labels": labels, "masks": masks, "targets": targets}
            self.look_at_loss(outputs["terms"], inputs.get("index"), batch)
            self._collect({f"loss_{name}": term for name, term in outputs["terms"].items()})
            likeliest = labels if labels.ndim == 1 else labels.argmax(1)  # probabilities, of mixed views
            hits = (outputs["logits"].detach().argmax(1) == likeliest).sum()
            self._hits = self._hits + torch.stack([hits.double(), torch.full_like(hits, len(labels)).double()])
        return (loss, {"loss": loss, "logits": outputs["logits"]}) if return_outputs else loss

    def _epoch(self, passes: np.ndarray | Tensor | None) -> int | np.ndarray | Tensor:
        return int(self.state.epoch or 0) if passes is None else passes  # a stream counts them for each image

    def _view_of_this_epoch(self, passes: np.ndarray | Tensor | None) -> int | np.ndarray | Tensor:
        epoch, views_per_image = self._epoch(passes), self.args.count_views()
        if self.augmentation is None:
            return 0
        return epoch if views_per_image is None else epoch % views_per_image

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        # transformers would drop the last images of an evaluation, too, where training drops them
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and kwargs.get("is_training", False)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate without touching the random state, so that training does not depend on when it is evaluated."""
        # A data loader draws a seed as it starts; a run resumed from a checkpoint between the two would differ.
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return super().evaluation_loop(*args, **kwargs)

    def _collect(self, values: dict[str, Tensor]) -> None:
        # Sums stay on the device: reading a number here would make the step wait for it.
        for name, value in values.items():
            self._term_sums[name] = self._term_sums.get(name, 0) + value.detach().float()
        self._term_count += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the seconds of training so far and, to a training log, the mean of every term since the last one."""
        if "loss" in logs and self._term_count:
            names = sorted(self._term_sums)
            means = torch.stack([self._term_sums[name] for name in names]) / self._term_count
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs.update(zip(names, means, strict=True))
            right, seen = self.accelerator.reduce(torch.as_tensor(self._hits), reduction="sum").tolist()
            logs["train_accuracy"] = right / seen
            self._term_sums, self._term_count, self._hits = {}, 0, 0.0
        if self._began is not None:
            if self._seconds_before is None:  # this process's first log: only a resumed run has earlier ones
                self._seconds_before = max((row.get("seconds", 0.0) for row in self.state.log_history), default=0.0)
            logs["seconds"] = round(self._seconds_before + time.monotonic() - self._began, 3)
        super().log(logs, start_time)

    def running_sums(self) -> dict[str, Any]:
        """What has been summed up since the last log."""
        return {
            **super().running_sums(),
            "terms": {name: value.item() for name, value in self._term_sums.items()},
            "count": self._term_count,
            "hits": None if isinstance(self._hits, float) else self._hits.tolist(),
        }

    def restore_running_sums(self, sums: dict[str, Any]) -> None:
        """Go on with what `running_sums` gave."""
        super().restore_running_sums(sums)
        device = self.args.device
        self._term_sums = {name: torch.tensor(value, device=device) for name, value in sums["terms"].items()}
        self._term_count = sums["count"]
        self._hits = 0.0 if sums["hits"] is None else torch.tensor(sums["hits"], dtype=torch.double, device=device)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        model = self._distillation_model()
        self.student_to_keep().save_pretrained(folder)
        self.save_training_weights(folder)
        if head := model.head_state_dict():
            save_file({key: value.contiguous() for key, value in head.items()}, folder / HEAD_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self._restore(resume_from_checkpoint)
        self.restore_average(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is None:
            raise ValueError("no checkpoint of the best model was kept; raise save_total_limit")
        self._restore(self.state.best_model_checkpoint)

    def _restore(self, checkpoint: str) -> None:
        folder = Path(checkpoint)
        if not (folder / STUDENT_FILE).is_file():
            raise FileNotFoundError(
                f"no {STUDENT_FILE} in {folder}; it is not a checkpoint, or it was cut short: remove it"
            )
        model = self._distillation_model()
        model.student.load_state_dict(load_file(folder / STUDENT_FILE))
        expected = model.head_state_dict()
        if not expected:
            return
        saved = load_file(folder / HEAD_FILE)
        if saved.keys() != expected.keys():
            raise ValueError(
                f"{folder / HEAD_FILE} belongs to other losses: it lacks {sorted(expected.keys() - saved.keys())}"
            )
        model.load_state_dict(saved, strict=False)
