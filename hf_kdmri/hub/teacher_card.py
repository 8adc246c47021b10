"""The teacher's short card, and the links between the cards of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, RepoCard

from hf_kdmri.evaluation.report import results_table
from hf_kdmri.hub.card_template import Markdown, render_card
from hf_kdmri.hub.card_text import PIPELINE_SNIPPET, PLACEHOLDER, SPLITS

_TAGS = ("knowledge-distillation", "timm", "teacher")
_OUR_TAGS = ("medical-imaging", "brain-mri", "brain-tumor")
_RELATED = "## Related repositories"


def teacher_card(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *,
    repo_id: str,
    student_id: str,
    dataset_id: str | None = None,
) -> str:
    """Render the card. No network is used.

    Args:
        config: The teacher's `config.json`.
        metrics: Of the run, `metrics.json`.
        repo_id: The teacher's `user/name`.
        student_id: The student's.
        dataset_id: The data set's, where it is on the Hub.

    Returns:
        The text of `README.md`.
    """
    facts, rows = metrics["run"], metrics["models"]
    _, height, width = config["pretrained_cfg"]["input_size"]
    own, split, fold = bool(facts.get("own_data")), str(facts["split"]), facts.get("fold")
    shown = [rows[stage] for stage in ("teacher", "student") if stage in rows]
    told: dict[str, object] = dict(
        model_name=repo_id.split("/")[1],
        phantom=bool(facts["phantom"]),
        own=own,
        repo_id=repo_id,
        student_id=student_id,
        architecture=config["architecture"],
        labels=", ".join(config["label_names"]),
        pipeline_snippet=Markdown(f"```python\n{_snippet(repo_id)}\n```"),
        height=height,
        width=width,
        source=facts["source"],
        split_text=Markdown(SPLITS[split]) if split in SPLITS and not own else f"Split: {split}.",
        chosen=f"seed {facts['seed']}" if fold is None else f"fold {fold}, seed {facts['seed']}",
        slices=", ".join(f"{count} {name}" for name, count in (facts.get("slices") or {}).items()),
        results=Markdown(results_table(shown)),
        fold_known=fold is not None,
        machine=facts["machine"],
        versions=", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    )
    data = _metadata(facts, rows.get("teacher"), repo_id, dataset_id)
    return f"---\n{data.to_yaml()}\n---\n\n{render_card('teacher.md', told)}\n"


def _snippet(repo_id: str) -> str:
    lines = PIPELINE_SNIPPET.format(model=repo_id).strip().splitlines()
    return "\n".join(line.split("  # ")[0] for line in lines)  # the remark is about a section of the student's card


def _metadata(
    facts: Mapping[str, Any], row: Mapping[str, Any] | None, repo_id: str, dataset_id: str | None
) -> ModelCardData:
    own, phantom = bool(facts.get("own_data")), bool(facts["phantom"])
    names = {"accuracy": "accuracy", "f1": "macro_f1"}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="generated-phantoms" if phantom else dataset_id or _slug(facts["source"]),
            dataset_name=facts["source"],
            dataset_config=str(facts["split"]),
            dataset_split="test",
            metric_type=metric,
            metric_value=round(float(row[key]), 4),
        )
        for metric, key in names.items()
        if row is not None
    ]
    return ModelCardData(
        model_name=repo_id.split("/")[1],
        license=None if own else "apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*_TAGS, *(() if own else _OUR_TAGS), *(("generated-phantoms", "not-for-use") if phantom else ())],
        datasets=None if phantom or dataset_id is None else [dataset_id],
        metrics=list(names),
        eval_results=results or None,
    )


def link_student_card(card: str, student_id: str, *, teacher_id: str | None, dataset_id: str | None) -> str:
    """Name a card's repositories: `base_model` and `datasets` in its head, the links in its text, its own name.

    Args:
        card: Text of the student's `README.md`.
        student_id: `user/name`, put where the snippets have a stand-in.
        teacher_id: The teacher's repository, or None where it has none.
        dataset_id: The data set's, likewise.

    Returns:
        The card; linking it again changes nothing.
    """
    card = card.replace(f"local-dir:{PLACEHOLDER}", f"hf-hub:{student_id}").replace(PLACEHOLDER, student_id)
    parsed = RepoCard(card, ignore_metadata_errors=True)
    head = parsed.data.to_dict()
    lines = []
    if teacher_id is not None:
        head["base_model"] = teacher_id
        lines.append(
            f"- [{teacher_id}](https://huggingface.co/{teacher_id}): the teacher this model was distilled from"
        )
    if dataset_id is not None:
        head["datasets"] = list(dict.fromkeys([*(head.get("datasets") or []), dataset_id]))
        lines.append(f"- [{dataset_id}](https://huggingface.co/datasets/{dataset_id}): the data set")
    text = parsed.text.split(f"\n{_RELATED}\n")[0].strip()
    if lines:
        text += f"\n\n{_RELATED}\n\n" + "\n".join(lines)
    yaml_head = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10_000).strip()
    return f"---\n{yaml_head}\n---\n\n{text}\n"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
