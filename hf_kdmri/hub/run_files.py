"""What a finished run publishes: the files of the student's and of the teacher's repository."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_kdmri.hub.card_rules import CardError, check_card_text
from hf_kdmri.hub.contents import REQUIRED_FILES, Content, collect_folder
from hf_kdmri.hub.endpoint_handler import HANDLER
from hf_kdmri.hub.hub_errors import PublishError
from hf_kdmri.hub.provenance import KEY, config_text, provenance, public_command, teacher_of
from hf_kdmri.hub.repository import RepositoryPlan
from hf_kdmri.hub.samples import write_samples
from hf_kdmri.hub.teacher_card import link_student_card, teacher_card

ONNX = "onnx/model.onnx"
RESULTS = "results.json"
# Figures without pictures: those of the data set may show patients, and the model's users need not see them.
FIGURES = ("training_curves", "comparison", "confusion", "reliability", "risk_coverage", "convergence")
_OF_DISTILLED = ("reliability",)  # figures that show the distilled student alone
_OURS = ("onnx/", "samples/", "figures/", RESULTS)  # what an earlier push of ours may have left


def read_metrics(run: Path) -> dict[str, Any]:
    """`metrics.json` of a finished run of one fold.

    Raises:
        FileNotFoundError: The run is not finished or has several folds.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is a run that is not finished (no metrics.json): run train_kd.py again, or push {run / 'student'}"
        )
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if metrics["run"].get("folds"):
        some = run / f"fold-{metrics['run']['folds'][0]}"
        raise FileNotFoundError(f"{run} has a student in each of its folds; push one of them, for instance {some}")
    return metrics


def student_plan(
    run: Path,
    repo_id: str,
    metrics: Mapping[str, Any],
    options: Mapping[str, Any],
    teacher_id: str | None,
    dataset_id: str | None,
    *,
    onnx: bool,
    notes: list[str],
    stage: str = "student",
) -> RepositoryPlan:
    """What the student's repository is to hold.

    Args:
        run: Run folder.
        repo_id: `user/name`.
        metrics: `metrics.json`.
        options: `config.yaml`.
        teacher_id: The teacher's repository, or None.
        dataset_id: The data set's, likewise.
        onnx: Also `onnx/model.onnx`.
        notes: Gets a line for what is left out.
        stage: "student", or "baseline" for the one without a teacher.

    Raises:
        FileNotFoundError: The student is not whole.
        PublishError: The ONNX file does not agree with the model.
    """
    folder = run / stage
    if missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {' and '.join(missing)}: run train_kd.py again")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not write_samples(folder, config["label_names"]):
        notes.append("no sample images: phantoms have other classes than the model")
    if onnx:
        _export(folder, notes)
    files: dict[str, Content] = {
        name: path for name, path in collect_folder(folder).items() if onnx or not name.startswith("onnx/")
    }
    if stage == "student":
        config = _with_provenance(config, metrics, options, teacher_id)
    else:
        config = {**config, KEY: provenance(metrics["run"], options, None)}
    files["config.json"] = config_text(config).encode()
    if "README.md" in files:
        card = (folder / "README.md").read_text(encoding="utf-8")
        linked = link_student_card(card, repo_id, teacher_id=teacher_id, dataset_id=dataset_id)
        files["README.md"] = linked.encode()
    else:
        notes.append(f"no README.md in {stage}/: published without a card")
    results = _public_results(metrics)
    whole = run_over_folds(run)
    if whole is not None:
        pooled = _public_results(json.loads((whole / "metrics.json").read_text(encoding="utf-8")))
        results["pooled_over_folds"] = {name: pooled[name] for name in ("run", "models", "evaluation")}
    files[RESULTS] = (json.dumps(results, indent=2) + "\n").encode()
    figures = FIGURES if stage == "student" else [name for name in FIGURES if name not in _OF_DISTILLED]
    for name in figures:
        for place in (run, whole):
            if place is not None and (figure := place / "figures" / f"{name}.png").is_file():
                files[f"figures/{name}.png"] = figure
                break
    files["handler.py"] = HANDLER
    if "README.md" in files:
        try:
            check_card_text(linked, files.__contains__, f"{folder / 'README.md'}")
        except CardError as error:
            raise PublishError(f"{error}\nMend the card, or make it again with kdmri report {run}") from error
    return RepositoryPlan(
        repo_id,
        dict(sorted(files.items())),
        "Upload the distilled student" if stage == "student" else "Upload the student",
        is_stale=lambda name: name.startswith(_OURS),
    )


def run_over_folds(run: Path) -> Path | None:
    """The run that a fold's folder belongs to, where all of it is finished."""
    path = run.resolve().parent / "metrics.json"
    if not run.resolve().name.startswith("fold-") or not path.is_file():
        return None
    return path.parent if json.loads(path.read_text(encoding="utf-8"))["run"].get("folds") else None


def _export(folder: Path, notes: list[str]) -> None:
    """Write `onnx/model.onnx` unless a file newer than the weights is there."""
    target, weights = folder / ONNX, folder / "model.safetensors"
    if target.is_file() and target.stat().st_mtime >= weights.stat().st_mtime:
        return
    if importlib.util.find_spec("onnx") is None:
        notes.append(f"no {ONNX}: pip install 'hf_kdmri[onnx]'")
        return
    from hf_kdmri.export import ExportError, export_onnx

    try:
        export_onnx(folder, target)
    except ImportError as error:
        notes.append(f"no {ONNX}: {error}")
    except ExportError as error:
        raise PublishError(f"{error} To publish without it: --no-onnx.") from error


def _with_provenance(
    config: Mapping[str, Any], metrics: Mapping[str, Any], options: Mapping[str, Any], teacher_id: str | None
) -> dict[str, Any]:
    block = config.get(KEY)
    if block is None:  # a run of a version that did not write it
        architecture = metrics["models"].get("teacher", {}).get("architecture", "unknown")
        block = provenance(metrics["run"], options, teacher_of(options, architecture))
    if teacher_id is not None:
        block = {**block, "teacher": {**block["teacher"], "hub_id": teacher_id}}
    return {**config, KEY: block}


def teacher_plan(
    folder: Path, metrics: Mapping[str, Any], teacher_id: str, student_id: str, dataset_id: str | None
) -> RepositoryPlan:
    """What the teacher's repository is to hold.

    Args:
        folder: The teacher's model folder.
        metrics: `metrics.json`.
        teacher_id: `user/name`.
        student_id: The student's repository.
        dataset_id: The data set's, or None.
    """
    files: dict[str, Content] = {name: folder / name for name in REQUIRED_FILES}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = teacher_card(config, metrics, repo_id=teacher_id, student_id=student_id, dataset_id=dataset_id)
    files["README.md"] = card.encode()
    return RepositoryPlan(teacher_id, dict(sorted(files.items())), "Upload the teacher")


def _public_results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics.json` without this machine's folders and what the card says already."""
    facts = {name: value for name, value in metrics["run"].items() if name not in ("figures", "card")}
    facts["command"] = public_command(shlex.split(str(facts.get("command", ""))))
    return {**metrics, "run": facts}
