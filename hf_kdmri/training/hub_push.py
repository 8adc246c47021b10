"""Trainer's own `push_to_hub` and `hub_strategy`, for a trainer whose model is a student within a larger module."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy

from hf_kdmri.whole_files import write_whole

logger = logging.getLogger(__name__)

_PUBLISHED = ("config.json", "model.safetensors", "README.md")
_CARD = """---
library_name: transformers
pipeline_tag: image-classification
tags:
- knowledge-distillation
- timm
---

# {name}

A student whose training is not finished, or was not tested: written by `DistillationTrainer` while it trained. Do not
rely on it. `kdmri push RUN` publishes a finished run with its results.
"""


class StudentPush(Trainer):
    """A `Trainer` whose pushes hold the student and nothing else.

    transformers' own push sends everything in `output_dir`, with `training_args.bin`: a pickle in which `hub_token`
    stands in plain text. Here a push holds `config.json`, `model.safetensors` and `README.md` (a card that says that
    this is no result, unless there is one already). With `hub_strategy="checkpoint"` the last checkpoint goes to
    `last-checkpoint/` as well, with the optimiser's state, as transformers does; `"end"` pushes when `save_model` or
    `push_to_hub` is called.
    """

    push_in_progress: Any

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a short card into `output_dir` unless there is one; the arguments of transformers have no effect."""
        card = Path(str(self.args.output_dir)) / "README.md"
        if self.is_world_process_zero() and not card.is_file():
            write_whole(card, _CARD.format(name=str(self.hub_model_id or card.parent.name).split("/")[-1]))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Any:
        """Save the student and send it.

        Args:
            commit_message: Of the commit.
            blocking: Wait for the end of the upload.
            token: Instead of `hub_token`.
            revision: Branch; default `hub_revision`, or main.
            private: Make a new repository private; default `hub_private_repo`.
            **kwargs: Of transformers' card; without effect.

        Returns:
            The commit, or without `blocking` a future of it; None on other processes than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._send_student(str(commit_message), token=token, revision=revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        if self.push_in_progress is not None:
            # Tells what failed; and files must not change under an upload that still reads them.
            self.push_in_progress.wait_until_done()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for name in _PUBLISHED:  # a copy, since the next save may delete this checkpoint
            if (source := Path(checkpoint_folder) / name).is_file():
                shutil.copy(source, Path(str(self.args.output_dir)) / name)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        jobs = [self._send_student(f"Training in progress, {when}", run_as_future=True)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                HfApi().upload_folder(
                    repo_id=str(self.hub_model_id),
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                    commit_message=f"Training in progress, {when}, checkpoint",
                    token=self.args.hub_token,
                    ignore_patterns=["training_args.bin"],
                    revision=self.args.hub_revision,
                    run_as_future=True,
                )
            )
        self.push_in_progress = _Jobs(jobs)

    def _send_student(
        self, message: str, *, run_as_future: bool, token: str | None = None, revision: str | None = None
    ) -> Any:
        self.create_model_card()
        return HfApi().upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=str(self.args.output_dir),
            commit_message=message,
            token=token or self.args.hub_token,
            allow_patterns=list(_PUBLISHED),
            revision=revision or self.args.hub_revision,
            run_as_future=run_as_future,  # type: ignore[call-overload]
        )

    def _finish_current_push(self) -> None:
        jobs = getattr(self, "push_in_progress", None)
        if jobs is not None:
            jobs.wait_until_done()


class _Jobs:
    """Uploads in the background; unlike transformers' own list of them, one that failed is told."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs

    def is_done(self) -> bool:
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        for job in self.jobs:
            if (error := job.exception()) is not None:
                logger.warning("a push to the Hub during training failed, training goes on: %s", error)
        self.jobs = []

    def cancel(self) -> None:
        self.jobs = [job for job in self.jobs if not job.cancel()]
