"""Where a student comes from, as a block of its `config.json`: teacher, losses, data, split, code, versions.

Every loader of the format (transformers, timm, this package) passes over the key.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import hf_kdmri
from hf_kdmri.whole_files import write_whole

KEY = "distillation"
_OF_LABELS = ("label_smoothing_factor", "mask_weight")  # what of the losses' options a student has without a teacher
_FACTS = ("split", "fold", "seed", "slices", "patient_groups", "versions")


def code_state() -> dict[str, Any]:
    """Version of this package and, where it runs from its git checkout, the commit.

    Returns:
        `package`, `version`, and with git `commit` and `modified`: whether tracked files differ from the commit.
    """
    state: dict[str, Any] = {"package": "hf_kdmri", "version": hf_kdmri.__version__}
    root = Path(hf_kdmri.__file__).resolve().parents[1]
    if _git(root, "rev-parse", "--show-toplevel") == str(root):  # not of a project that has us in its environment
        state["commit"] = _git(root, "rev-parse", "HEAD")
        state["modified"] = _git(root, "status", "--porcelain", "--untracked-files=no") != ""
    return state


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def provenance(
    facts: Mapping[str, Any], options: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The block.

    Args:
        facts: Of the run, as `metrics.json` has them under `run`.
        options: Of the run, as `config.yaml` has them.
        teacher: `architecture`, and `hub_id` where it was taken from the Hub; None for a student without one, whose
            loss has no term of a teacher.

    Returns:
        JSON values; numbers of the loss that are switched off are left out.
    """
    from hf_kdmri.distillation.options import MASK, TERMS, LossOptions

    loss = {field.name: options[field.name] for field in fields(LossOptions) if options.get(field.name) is not None}
    off = [term for term in (*TERMS, MASK) if not loss.get(f"{term}_weight")]
    loss = {name: value for name, value in loss.items() if not any(name.startswith(f"{term}_") for term in off)}
    if teacher is None:
        loss = {name: loss[name] for name in _OF_LABELS if name in loss}
    return {
        "teacher": None if teacher is None else dict(teacher),
        "losses": {"cross_entropy_weight": 1.0, **loss},
        "data": facts["source"],
        **{name: facts[name] for name in _FACTS if facts.get(name) is not None},
        "code": facts.get("code", {"package": "hf_kdmri", "version": hf_kdmri.__version__}),
    }


def teacher_of(options: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """What the block says of the teacher.

    Args:
        options: Of the run, as `config.yaml` has them.
        architecture: timm's name.
    """
    given = options.get("teacher")
    if given is not None and not Path(given).exists() and given.count("/") == 1:
        return {"architecture": architecture, "hub_id": given}
    return {"architecture": architecture}


def write_provenance(folder: Path, block: Mapping[str, Any]) -> None:
    """Put the block into a model folder's `config.json`."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_whole(path, config_text({**config, KEY: block}))


def config_text(config: Mapping[str, Any]) -> str:
    """A `config.json` as transformers writes it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def public_command(words: Iterable[str]) -> str:
    """A command line whose absolute paths are shortened to their last part, so that no one's folders are published."""
    return shlex.join(map(_without_folders, words))


def _without_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"
