"""Training on a stream: which options it bears, its data loader, and how it goes on after a stop."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer

from hf_kdmri.data.streams import StreamedViews
from hf_kdmri.data.views import collate_views
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.data_options import DataOptions, OptionError

_STRATEGIES = ("logging_strategy", "save_strategy", "eval_strategy")


def check_streaming(data: DataOptions, training: DistillationTrainingArguments) -> None:
    """Refuse what a stream cannot do, before anything is read.

    Raises:
        OptionError: an option that needs the whole set, or the length of an epoch; the message says why and what to do.
    """
    if not data.streaming:
        return
    if training.max_steps < 1:
        raise OptionError("streaming needs --max_steps: the length of a stream, and so of an epoch, is not known")
    if training.teacher_cache is not None:
        raise OptionError(
            "teacher_cache keeps an answer for every view of every image, at its place in the set; a stream has no "
            "places and no end: leave out teacher_cache or streaming"
        )
    for name in ("lesion_weighting", "mask_weight"):
        if getattr(training, name):
            raise OptionError(f"{name} needs masks, which a stream does not carry; leave one of the two out")
    if by_epoch := [name for name in _STRATEGIES if str(getattr(training, name).value) == "epoch"]:
        flags = " ".join(f"--{name} steps" for name in by_epoch)
        raise OptionError(
            f"a stream has no epochs to log, save or validate after; give {flags} with --logging_steps, --save_steps "
            "and --eval_steps, or --config … configs/streaming.yaml"
        )


class StreamingTrainer(Trainer):
    """A `Trainer` that takes `StreamedViews` as its training set, and other sets as before.

    Every process reads its own share. accelerate would have the first process read everything and send the others
    theirs, or every process decode everything and keep its part; so this data loader is not given to it.
    """

    args: DistillationTrainingArguments

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process.

        Raises:
            ValueError: more workers than the stream has shards for, or another batch size or number of processes than
                the stream was made for.
        """
        stream = self.train_dataset
        if not isinstance(stream, StreamedViews):
            return super().get_train_dataloader()
        made_for = (stream.batch_size, stream.process_index, stream.num_processes)
        mine = (self.args.per_device_train_batch_size, self.args.process_index, self.args.world_size)
        if made_for != mine:
            raise ValueError(
                f"the stream was made for (batch size, process, processes) {made_for}, the trainer has {mine}"
            )
        workers = self.args.dataloader_num_workers
        stream.check_workers(workers)
        return DataLoader(
            stream,
            batch_size=None,
            collate_fn=collate_views,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.train_dataset, StreamedViews):
            # The batches that transformers is about to skip need not be decoded.
            self.train_dataset.skip_batches = self.state.global_step * self.args.gradient_accumulation_steps
        super()._run_epoch(*args, **kwargs)
