"""Checkpoints that are whole or absent: written under another name, listed with checksums, synced, renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_kdmri.whole_files import sha256_of, sync_folder, sync_tree, write_whole

CONTENTS = "contents.json"  # of a checkpoint: its files with bytes and sha256
_UNFINISHED = ".unfinished"  # beside the checkpoints: what is being written or deleted
_ASIDE = "damaged-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class CheckpointError(OSError):
    """A checkpoint could not be written; the message names the folder, what is kept and the way out."""


def last_whole_checkpoint(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """Find the newest checkpoint whose files are all there and are what was written; put damaged ones aside.

    One process calls this, while no other writes. A damaged checkpoint is renamed to `damaged-checkpoint-N`, which is
    deleted when the next whole checkpoint is written.

    Args:
        folder: with checkpoints `checkpoint-N`, or absent.
        say: told of each damaged one, in one line.

    Returns:
        The checkpoint, or None where there is no whole one.
    """
    for checkpoint in reversed(checkpoints_in(folder)):
        damage = damage_of(checkpoint)
        if damage is None:
            return checkpoint
        aside = checkpoint.with_name(_ASIDE + checkpoint.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
        say(f"{checkpoint} is not whole and is not used ({damage}); it is put aside as {aside.name}")
    return None


def damage_of(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, by file; None if it is whole."""
    path = checkpoint / CONTENTS
    if not path.is_file():
        return f"it has no {CONTENTS}, which is written last"
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, written in contents.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if (size := file.stat().st_size) != written["bytes"]:
                return f"{name} has {size} bytes, {written['bytes']} were written"
            if sha256_of(file) != written["sha256"]:
                return f"{name} has changed since it was written: its sha256 is another"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


class WholeCheckpoints(Trainer):
    """A `Trainer` whose checkpoints are whole or absent, and that goes on from the last whole one.

    transformers writes into `checkpoint-N` itself, so that a kill leaves a part that looks like a whole, and then
    deletes by number or time, which may leave that part alone. Here a checkpoint is written into `.unfinished/`, listed
    in `contents.json` with sizes and checksums, synced and renamed; only then older ones are deleted. What has been
    summed up for the next log is kept too, so that a run stopped within an epoch logs what the undisturbed run does.
    """

    _writing = False
    _resumed_from: str | None = None  # until what was summed up there is taken up

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train` does; with `resume_from_checkpoint=True`, from the last whole checkpoint if any."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.find_checkpoint()
        self._resumed_from = resume_from_checkpoint or None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def find_checkpoint(self) -> str | None:
        """The last whole checkpoint in `output_dir`, the same for all processes; the main one says what is damaged."""
        found: list[str | None] = [None]
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
            whole = last_whole_checkpoint(folder, lambda message: print(f"  {message}", flush=True))
            found = [None if whole is None else str(whole)]
        return broadcast_object_list(found)[0]

    def running_sums(self) -> dict[str, Any]:
        """What has been summed up since the last log, in JSON values; subclasses add theirs."""
        return {
            "first_step": self._initial_global_step,
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def restore_running_sums(self, sums: dict[str, Any]) -> None:
        """Go on with what `running_sums` gave."""
        self._initial_global_step = sums["first_step"]
        self._tr_loss = torch.full_like(self._tr_loss, sums["loss"])
        self._total_loss_scalar = sums["total_loss"]
        self._globalstep_last_logged = sums["last_logged"]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._take_up_sums()
        if self.state.global_step >= self.state.max_steps:  # resumed at the last step; transformers would add one
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._take_up_sums()
        return super()._finalize_training(*args, **kwargs)

    def _take_up_sums(self) -> None:
        # When training begins, transformers sets its sums to nothing, also where it goes on.
        if self._resumed_from is not None:
            path = Path(self._resumed_from) / _sums_file(self.args.process_index)
            if path.is_file():  # absent where there were fewer processes
                self.restore_running_sums(json.loads(path.read_text(encoding="utf-8")))
            self._resumed_from = None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the others' random states are there
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent.name == _UNFINISHED:
                self.state.best_model_checkpoint = str(folder / name)
            if self.args.should_save:
                self._finish(folder, name)
        except (OSError, RuntimeError, SafetensorError) as error:  # all three speak of full disks
            # torch tells of a dead data worker wherever the process happens to be
            if self.args.should_save and not str(error).startswith("DataLoader worker"):
                raise _cannot_write(folder, name, error) from error
            raise
        finally:
            self._writing = False
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))

    def _finish(self, folder: Path, name: str) -> None:
        """List what was written, have the disk keep it, give it its name, and delete older checkpoints."""
        written, final = folder / _UNFINISHED / name, folder / name
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))  # again: the best checkpoint has its final name now
        files = sorted(path for path in written.rglob("*") if path.is_file())
        contents = {
            path.relative_to(written).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        }
        sync_tree(written)
        write_whole(written / CONTENTS, json.dumps({"files": contents}, indent=2) + "\n")
        if final.is_dir():  # of an earlier training in the same folder
            os.replace(final, folder / _UNFINISHED / f"old-{name}")
        os.replace(written, final)
        sync_folder(folder)
        self._delete_older(folder, final)
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)

    def _delete_older(self, folder: Path, newest: Path) -> None:
        for aside in folder.glob(f"{_ASIDE}checkpoint-*"):
            shutil.rmtree(aside, ignore_errors=True)
        limit = self.args.save_total_limit
        if limit is None or limit < 1:
            return
        kept = {newest}
        if self.state.best_model_checkpoint is not None:
            kept.add(folder / Path(self.state.best_model_checkpoint).name)
        older = sorted(
            (path for path in checkpoints_in(folder) if path not in kept), key=lambda path: path.stat().st_mtime
        )
        for checkpoint in older[: max(0, len(older) + len(kept) - limit)]:
            doomed = folder / _UNFINISHED / f"old-{checkpoint.name}"
            os.replace(checkpoint, doomed)  # a kill while its files are deleted leaves nothing that looks whole
            shutil.rmtree(doomed, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / _UNFINISHED) if self._writing else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writing:  # else it is pushed when it has its name
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        path = Path(output_dir) / _sums_file(self.args.process_index)
        path.write_text(json.dumps(self.running_sums()), encoding="utf-8")


def _sums_file(process: int) -> str:
    return f"running_sums_{process}.json"


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders named `checkpoint-N`, in the order of N."""
    if not folder.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(numbered) if path.is_dir()]


def _cannot_write(folder: Path, name: str, error: Exception) -> CheckpointError:
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    kept = [path.name for path in checkpoints_in(folder)]
    free = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0.0
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, RuntimeError):  # torch does not speak of the disk
        reason = f"a file was cut short, as on a full disk: {reason}"
    return CheckpointError(
        f"{name} could not be written into {folder} ({reason}; {free:.0f} MiB free). "
        f"Kept: {', '.join(kept) or 'no checkpoint yet'}. Make room there, or choose another --output_dir; the same "
        "command then goes on from what is kept"
    )
