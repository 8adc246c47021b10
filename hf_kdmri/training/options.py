"""The options of a run: dataclasses, a YAML file over their defaults, flags over both."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import HfArgumentParser

from hf_kdmri.distillation import LossOptions
from hf_kdmri.training.arguments import DistillationTrainingArguments
from hf_kdmri.training.data_options import DataOptions, OptionError
from hf_kdmri.training.streaming import check_streaming
from hf_kdmri.whole_files import write_whole


@dataclass
class ModelOptions:
    """Which models, and what differs between the stages."""

    _argument_group_name = "models"

    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a fine-tuned teacher; then no teacher is trained."}
    )
    teacher_architecture: str = field(default="tf_efficientnet_lite0", metadata={"help": "timm name of the teacher."})
    teacher_pretrained: bool = field(
        default=False, metadata={"help": "Start the teacher from timm's ImageNet weights (downloads from the Hub)."}
    )
    teacher_weights: str | None = field(
        default=None, metadata={"help": "Local .safetensors file, in timm's keys, that the teacher starts from."}
    )
    teacher_image_size: int = field(default=224, metadata={"help": "Side of the teacher's input, pixels."})
    teacher_drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the teacher."})
    teacher_num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs of the teacher, if not num_train_epochs. A --num_train_epochs flag wins."},
    )
    teacher_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the teacher, if not learning_rate."}
    )
    student_architecture: str = field(default="mobilenetv4_conv_small", metadata={"help": "timm name of the student."})
    student_model_args: list[str] | None = field(
        default=None,
        metadata={"help": "Further arguments of the student's timm architecture: name=value, e.g. ls_init_value=0.1."},
    )
    student_weights: str | None = field(
        default=None, metadata={"help": "Local .safetensors file, in timm's keys, that both students start from."}
    )
    student_image_size: int = field(default=192, metadata={"help": "Side of the student's input, pixels."})
    student_drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the student."})
    num_scales: int = field(default=3, metadata={"help": "Stage maps compared between teacher and student."})
    baseline: bool = field(default=True, metadata={"help": "Also train the student without a teacher, to compare."})
    teacher_only: bool = field(
        default=False, metadata={"help": "Train the teacher and stop: a folder to give as --teacher to other runs."}
    )

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        for name in ("teacher_image_size", "student_image_size"):
            if getattr(self, name) < 32:
                raise OptionError(f"{name} is {getattr(self, name)}; the stages need at least 32 pixels")
        timm_arguments(self.student_model_args)
        if self.teacher_only and self.teacher is not None:
            raise OptionError(f"teacher_only trains a teacher, but --teacher {self.teacher} is finished; leave one out")


def timm_arguments(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Read `name=value` pairs, the values as YAML.

    Raises:
        OptionError: a pair without "=" or a value that is no YAML.

    Example:
        >>> timm_arguments(["ls_init_value=0.1", "depths=[2, 2, 6, 2]"])
        {'ls_init_value': 0.1, 'depths': [2, 2, 6, 2]}
    """
    arguments = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"student_model_args has {assignment!r}; each is name=value, such as ls_init_value=0.1")
        try:
            arguments[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"student_model_args: the value of {name} is not valid YAML: {error}") from error
    return arguments


@dataclass
class EvaluationOptions:
    """What is tested beside the predictions."""

    _argument_group_name = "evaluation"

    saliency: bool = field(
        default=True, metadata={"help": "Score every model's Grad-CAM against the tumour masks, where there are any."}
    )
    robustness_images: int = field(
        default=0, metadata={"help": "Test images of each fold that are classified under MRI corruptions; 0: none."}
    )

    def __post_init__(self) -> None:
        """Refuse a number that makes no test."""
        if self.robustness_images < 0:
            raise OptionError(f"robustness_images is {self.robustness_images}; it must be at least 0")
        if self.robustness_images and importlib.util.find_spec("monai") is None:
            raise OptionError("robustness_images needs MONAI: pip install 'hf_kdmri[robustness]', or set it to 0")


OPTION_CLASSES = (DataOptions, ModelOptions, EvaluationOptions, DistillationTrainingArguments)


@dataclass
class RunOptions:
    """Everything one run was asked for."""

    data: DataOptions
    model: ModelOptions
    evaluation: EvaluationOptions
    training: DistillationTrainingArguments

    def __post_init__(self) -> None:
        """Refuse options that do not go together."""
        check_streaming(self.data, self.training)

    def of_fold(self, fold: int) -> RunOptions:
        """The options of one fold of a cross-validation, with a folder, a teacher and a teacher cache of its own.

        Raises:
            OptionError: one finished teacher for several folds; it was trained on patients that others test on.
        """
        teacher, cache = self.model.teacher, self.training.teacher_cache
        if teacher is not None and "{fold}" not in teacher:
            raise OptionError(
                f"--teacher {teacher} would be shared by folds that test on its training patients; name one teacher "
                "per fold, as in --teacher 'runs/teachers/fold-{fold}/teacher', or leave it out"
            )
        folder = Path(self.training.output_dir or "runs/unnamed") / f"fold-{fold}"
        changes: dict[str, Any] = {"output_dir": str(folder), "push_to_hub": False}
        if cache is not None:
            changes["teacher_cache"] = (
                cache.format(fold=fold) if "{fold}" in cache else str(Path(cache) / f"fold-{fold}")
            )
        return RunOptions(
            dataclasses.replace(self.data, fold=fold, folds=None),
            dataclasses.replace(self.model, teacher=teacher and teacher.format(fold=fold)),
            self.evaluation,
            dataclasses.replace(self.training, **changes),
        )

    def as_dict(self) -> dict[str, Any]:
        """All options of this project, and transformers' own where they differ from their defaults, ready for YAML.

        Reading the result back with `--config` gives an equal run.
        """
        flat: dict[str, Any] = {}
        for options in (self.data, self.model, self.evaluation):
            flat.update(dataclasses.asdict(options))
        loss = {option.name for option in dataclasses.fields(LossOptions)}
        own = {*DistillationTrainingArguments.__annotations__, *loss, *_ALWAYS_WRITTEN}
        # Compared with fresh arguments, not with the fields' defaults: transformers derives many values on creation.
        fresh = DistillationTrainingArguments()
        for name in sorted(f.name for f in dataclasses.fields(fresh) if f.init and f.name not in _NEVER_WRITTEN):
            value = _plain(getattr(self.training, name))
            if name in own or value != _plain(getattr(fresh, name)):
                flat[name] = value
        flat.pop("config")
        flat["overwrite_output_dir"] = False  # a wish of that moment: the file read again must not delete the run
        return flat


def default_options() -> dict[str, Any]:
    """What `RunOptions.as_dict` says of a run that was given no option."""
    return RunOptions(DataOptions(), ModelOptions(), EvaluationOptions(), DistillationTrainingArguments()).as_dict()


_ALWAYS_WRITTEN = {"output_dir", "seed", "gradient_accumulation_steps", "bf16", "max_steps", "eval_strategy"}
# The machine's own, or a secret.
_NEVER_WRITTEN = {"use_cpu", "cpu_threads", "keep_memory", "dataloader_pin_memory", "hub_token"}


def parse_options(argv: Sequence[str] | None = None) -> RunOptions:
    """Read the command line: defaults, then the YAML files of `--config`, then the flags.

    Args:
        argv: arguments without the program's name; default `sys.argv[1:]`.

    Returns:
        The options, checked.

    Raises:
        OptionError: an unknown key or flag (the nearest valid name is given), a value of the wrong type or out of
            range, or a file that is no YAML mapping.
        SystemExit: `--help`, or a flag whose value cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        list(OPTION_CLASSES),  # type: ignore[arg-type]  # transformers types it as a NewType
        prog="train_kd.py",
        usage="accelerate launch train_kd.py [--config FILE ...] [--option VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.set_defaults(eval_strategy="epoch")  # a run always validates; a trainer alone may have nothing to do it on
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", nargs="+", default=[])
    for config in early.parse_known_args(argv)[0].config:
        parser.set_defaults(**read_config(config))
    if any(arg.split("=")[0].replace("-", "_") == "__num_train_epochs" for arg in argv):
        # The flag speaks for all stages; only a flag for the teacher alone says otherwise.
        parser.set_defaults(teacher_num_train_epochs=None)
    try:
        data, model, evaluation, training, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(str(error)) from error
    if unknown:
        raise OptionError(_unknown("option", unknown[0].lstrip("-").split("=")[0], prefix="--"))
    if training.push_to_hub and (training.hub_model_id or "").count("/") != 1:
        raise OptionError(f"--push_to_hub needs --hub_model_id USER/NAME, got {training.hub_model_id!r}")
    if training.push_to_hub and (data.folds is not None or model.teacher_only):
        raise OptionError(
            "--push_to_hub sends the distilled student of one run; with --folds or --teacher_only there is none or "
            "several: push one afterwards with `kdmri push RUN/fold-0 --to USER/NAME`"
        )
    return RunOptions(data, model, evaluation, training)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read and check a YAML file of options.

    Args:
        path: a flat mapping of option names to values.

    Returns:
        Values of the types that the options have.

    Raises:
        OptionError: see `parse_options`.
    """
    path = Path(path)
    if not path.is_file():
        raise OptionError(f"no configuration file at {path}; configs/ holds demo.yaml and figshare.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise OptionError(f"{path} must hold a mapping `option: value`, not a {type(values).__name__}")
    hints = _type_hints()
    checked = {}
    for key, value in values.items():
        if key == "folds" and value is not None:  # all, 1, or [0, 1]
            value = [str(word) for word in (value if isinstance(value, list) else [value])]
        if key not in hints or key == "config":
            raise OptionError(f"{path}: {_unknown('key', str(key))}")
        try:
            checked[key] = _plain(TypeAdapter(hints[key]).validate_python(value))
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise OptionError(
                f"{path}: {key} is {value!r}, a {type(value).__name__}, but must be {_type_name(hints[key])} ({reason})"
            ) from error
    return checked


def write_config(options: RunOptions, path: str | Path) -> None:
    """Write the options as resolved, so that `--config PATH` repeats the run."""
    text = yaml.safe_dump(options.as_dict(), sort_keys=True, allow_unicode=True)
    header = "# Options as resolved; `train_kd.py --config` on this file repeats the run.\n"
    write_whole(Path(path), header + text)


def _type_hints() -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for options in OPTION_CLASSES:
        resolved = typing.get_type_hints(options)
        hints.update({f.name: resolved[f.name] for f in dataclasses.fields(options) if f.init})
    return hints


def _unknown(what: str, name: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), _type_hints(), n=1, cutoff=0.5)
    nearest = f"did you mean {prefix}{near[0]}?" if near else "`train_kd.py --help` lists all options"
    return f"unknown {what} {prefix}{name}; {nearest}"


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, and keep the lines of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):
            return f"Switch --{action.dest} off."
        return super()._get_help_string(action)


_DESCRIPTION = """Teach a small model what a large one knows: data, teacher, student alone, student distilled,
evaluation, figures, a finished model folder. The data are the Figshare brain tumour slices, generated phantoms
(--phantom_slices), or any set of yours (--dataset_name). Options come from --config, flags override it."""

_EPILOG = """examples:
  accelerate launch train_kd.py --config configs/demo.yaml
  accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --fold 0
  accelerate launch train_kd.py --config configs/figshare.yaml --data_dir DIR --teacher runs/figshare/teacher
  accelerate launch train_kd.py --dataset_name MY_FOLDER --group_column patient --output_dir runs/mine
exit codes:
  0  finished, now or before        1  an error, in one line: options, data, a full disk, numbers that are not finite
  2  a flag that cannot be read    75  stopped by SIGTERM, saved after the step; run the same command again
                                  130  interrupted by Ctrl-C; the same command goes on from the last checkpoint
(`accelerate launch` and torchrun themselves end with 1 whenever the program ends with anything but 0)
"""
