"""The student's model card: metadata for the Hub, and a page that says what the model is and what it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.evaluation.report import escape_markdown, markdown_table, results_table
from hf_kdmri.evaluation.statistics.bootstrap import MIN_GROUPS
from hf_kdmri.hub.card_tables import evaluation_tables, patient_table, recall_table
from hf_kdmri.hub.card_template import Markdown, render_card
from hf_kdmri.hub.card_text import (
    CITED_DATA,
    PIPELINE_SNIPPET,
    PLACEHOLDER,
    SPLITS,
    TIMM_SNIPPET,
    WINDOW_SNIPPET,
    citations,
)
from hf_kdmri.hub.own_data_card import OwnDataFacts, count_lines, name_classes, own_split_text

STUDENT_ROW, BASELINE_ROW = "Distilled student", "Student alone"
_LISTED_LABELS = 30


@dataclass(frozen=True)
class StudentCardFacts:
    """What the card tells that the model folder does not know by itself.

    Args:
        model_name: Short name, for instance `kdmri-student`.
        results: One row for each model as for `results_table`, one of them with model "Distilled student" (or what
            `described` says); rows may also carry `recall_per_class` and `patients` as `ClassificationReport` returns
            them.
        teacher: Architecture or Hub name of the teacher.
        losses: Each loss term with its weight and settings, for instance `{"cross-entropy": "weight 1"}`.
        split: `patient_groups`, `cvind` or `random_slices`; with `own_data`, a few words of one's own.
        fold: 0 to 4, or None where own data brought their own splits.
        seed: Of this run.
        training_command: The command that made the weights.
        versions: Package to version.
        machine: Where the milliseconds were measured.
        phantom: True if the data were generated; the card then says so loudly and claims nothing about MRI.
        first_weights: What the teacher and the student started from, `{"teacher": …, "student": …}`, if known.
        repo_id: `user/name` on the Hub for the snippets; a local folder stands there otherwise.
        dataset_id: `user/name` of the data set on the Hub, for the metadata.
        own_data: The data set, where it is not the Figshare slices; the card then speaks of it instead.
        data_note: A further sentence about the data, for instance that the images were re-encoded.
        evaluation: What else was measured, as `metrics.json` keeps it under `evaluation`: the card then gives
            intervals, tests, calibration, robustness and saliency.
        pooled_folds: The folds that results and evaluation are pooled over; empty for a run of one.
        base_model: Hub name of what the student was made from, for the metadata.
        cited: Entries of `model_cards/citations.bib` for the methods that were used.
        described: The row that the card is about: "Student alone" where the student that had no teacher is published.
    """

    model_name: str
    results: Sequence[Mapping[str, Any]]
    teacher: str
    losses: Mapping[str, str]
    split: str
    fold: int | None
    seed: int
    training_command: str
    versions: Mapping[str, str]
    machine: str
    phantom: bool = False
    first_weights: Mapping[str, str] = field(default_factory=dict)
    repo_id: str | None = None
    dataset_id: str | None = None
    own_data: OwnDataFacts | None = None
    data_note: str = field(default="")
    evaluation: Mapping[str, Any] | None = None
    pooled_folds: Sequence[int] = ()
    base_model: str | None = None
    cited: Sequence[str] = ("hinton2015distilling", "wightman2019timm")
    described: str = STUDENT_ROW

    def __post_init__(self) -> None:
        """Refuse what would make a false or broken card."""
        if self.own_data is None and self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.own_data is not None and self.phantom:
            raise ValueError("the data are either a data set of one's own or generated phantoms, not both")
        for name in ("repo_id", "dataset_id", "base_model"):
            if (value := getattr(self, name)) is not None:
                validate_repo_id(value)
        for name in ("model_name", "teacher", "training_command", "machine"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; the card must state it")
        if self.described not in (STUDENT_ROW, BASELINE_ROW):
            raise ValueError(f"a card is about the {STUDENT_ROW!r} or the {BASELINE_ROW!r}, not {self.described!r}")
        if not any(row.get("model") == self.described for row in self.results):
            models = [row.get("model") for row in self.results]
            raise ValueError(f"the results have rows for {models}; expected one named {self.described!r}")

    @property
    def alone(self) -> bool:
        """Whether the card is about a student without a teacher."""
        return self.described == BASELINE_ROW


def write_student_card(folder: str | Path, facts: StudentCardFacts) -> Path:
    """Write `README.md` into a student's model folder.

    Architecture, labels and preprocessing are read from the folder's `config.json`. Names and labels are escaped: a
    label `<script>` shows as text. No network is used.

    Args:
        folder: Model folder.
        facts: Everything else.

    Returns:
        Path of the card.

    Raises:
        FileNotFoundError: `config.json` is missing.
        ValueError: `config.json` lacks a field, or a result row a key.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; save the student before its card")
    config = json.loads(path.read_text(encoding="utf-8"))
    try:
        labels, preprocessing, architecture = config["label_names"], config["pretrained_cfg"], config["architecture"]
        _, height, width = preprocessing["input_size"]
        mean, std = preprocessing["mean"], preprocessing["std"]
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; expected a timm_wrapper config with its preprocessing") from error

    own = facts.own_data
    results = Markdown(results_table(facts.results))
    student = next(row for row in facts.results if row["model"] == facts.described)
    model_id = facts.repo_id or PLACEHOLDER
    shown: dict[str, object] = dict(
        model_name=facts.model_name,
        phantom=facts.phantom,
        phantom_suffix=" of generated phantoms" if facts.phantom else "",
        architecture=architecture,
        parameters=f"{student['parameters']:,}" if student.get("parameters") else "uncounted",
        teacher=facts.teacher,
        made="trained without a teacher" if facts.alone else f"distilled from {facts.teacher}",
        alone=facts.alone,
        has_distilled=any(row["model"] == STUDENT_ROW for row in facts.results),
        own=own,
        unit="slices" if own is None else "images",
        counts=Markdown("") if own is None else Markdown(markdown_table(*count_lines(own, labels))),
        labels_text=name_classes(labels),
        label_order=", ".join(f"{index} {label}" for index, label in enumerate(labels[:_LISTED_LABELS])),
        more_labels=len(labels) > _LISTED_LABELS,
        pipeline_snippet=_code(PIPELINE_SNIPPET.format(model=model_id), "python"),
        timm_snippet=_code(
            TIMM_SNIPPET.format(model=f"hf-hub:{model_id}" if facts.repo_id else f"local-dir:{model_id}"), "python"
        ),
        window_snippet=_code(WINDOW_SNIPPET, "python"),
        citation=_code(citations([*(CITED_DATA if own is None else ()), *facts.cited]), "bibtex"),
        command=_code(facts.training_command, "bash"),
        split_text=Markdown(SPLITS[facts.split] if own is None else own_split_text(own)),
        chosen=f"seed {facts.seed}" if facts.fold is None else f"fold {facts.fold}, seed {facts.seed}",
        pooled=", ".join(map(str, facts.pooled_folds)),
        seed=facts.seed,
        data_note=facts.data_note,
        machine=facts.machine,
        results=results,
        tables=_tables(facts, labels),
        few=facts.evaluation is not None and facts.evaluation["summary"]["patient_groups"] < MIN_GROUPS,
        draws=f"{facts.evaluation['summary']['draws']:,}" if facts.evaluation else "",
        temperature=_temperature(facts),
        losses=Markdown("".join(f"- {escape_markdown(k)}: {escape_markdown(v)}\n" for k, v in facts.losses.items())),
        first_weights=facts.first_weights,
        has_baseline=any(row["model"] == BASELINE_ROW for row in facts.results),
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        height=height,
        width=width,
        mean=", ".join(f"{value:g}" for value in mean),
        std=", ".join(f"{value:g}" for value in std),
    )
    body = render_card("student.md", shown)
    card = ModelCard(f"---\n{_metadata(facts, student, labels).to_yaml()}\n---\n\n{body}\n")
    card.save(Path(folder) / "README.md")
    return Path(folder) / "README.md"


def _metadata(facts: StudentCardFacts, student: Mapping[str, Any], labels: Sequence[str]) -> ModelCardData:
    """Build the YAML head, with the student's results as a model index."""
    own, unit = facts.own_data, "slices" if facts.own_data is None else "images"
    dataset_id = facts.dataset_id if own is None else own.hub_id
    dataset_type = "generated-phantoms" if facts.phantom else dataset_id or "figshare-brain-tumor"
    dataset_name = "Generated phantom slices" if facts.phantom else "Figshare brain tumour data set (Cheng)"
    if own is not None:
        dataset_type, dataset_name = own.slug, own.name

    folds: dict[str, Any] | None = None if facts.fold is None else {"fold": facts.fold}
    if facts.pooled_folds:
        folds = {"folds": list(facts.pooled_folds), "pooled": True}

    def result(metric: str, name: str, value: float, args: dict[str, Any] | None = None) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_config=facts.split,
            dataset_split="test",
            dataset_args=folds,
            metric_type=metric,
            metric_name=name,
            metric_value=round(float(value), 4),
            metric_args=args,
        )

    evaluations = [
        result("accuracy", f"Accuracy over {unit}", student["accuracy"]),
        result("f1", f"Macro F1 over {unit}", student["macro_f1"], {"average": "macro"}),
    ]
    if student.get("patient_accuracy") is not None:
        evaluations.append(
            result("accuracy", "Accuracy over patients", student["patient_accuracy"], {"unit": "patient"})
        )
    tags = [] if facts.alone else ["knowledge-distillation"]
    if own is None:
        tags += ["medical-imaging", "brain-mri", "brain-tumor"]
    tags.append("timm")
    optional: dict[str, Any] = {"base_model": facts.base_model} if facts.base_model else {}
    if own is None:
        optional["widget"] = _widget(labels)
    return ModelCardData(
        model_name=facts.model_name,
        license="apache-2.0" if own is None else None,  # what other data allow is not ours to say
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*tags, "generated-phantoms", "not-for-use"] if facts.phantom else tags,
        datasets=None if facts.phantom or dataset_id is None else [dataset_id],
        metrics=["accuracy", "f1"],
        eval_results=evaluations,
        **optional,
    )


def _code(text: str, language: str) -> Markdown:
    """Fence code with more backticks than it holds in a row, so that nothing inside can end the block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.strip()}\n{fence}")


def _tables(facts: StudentCardFacts, labels: Sequence[str]) -> dict[str, Markdown]:
    """All tables by name; the template leaves out a section whose table is empty."""
    tables = {"recalls": recall_table(facts.results, labels), "patients": patient_table(facts.results)}
    if facts.evaluation is not None:
        known = facts.own_data is None or (facts.own_data.groups is not None and facts.own_data.one_class_per_group)
        tables |= evaluation_tables(facts.evaluation, facts.results, patients=known)
    names = ("headline", "per_class", "comparisons", "folds", "cost", "calibration", "saliency", "robustness")
    return {name: Markdown(tables.get(name, "")) for name in (*names, "recalls", "patients")}


def _temperature(facts: StudentCardFacts) -> str:
    """The student's fitted temperature, or "" where there is none."""
    stage = "baseline" if facts.alone else "student"
    if facts.evaluation is None or stage not in facts.evaluation["calibration"]:
        return ""
    fitted = facts.evaluation["calibration"][stage]["temperatures"]
    value = fitted.get(str(facts.fold or 0))
    return "" if value is None else f"{value:.2f}"


def _widget(labels: Sequence[str]) -> list[dict[str, str]]:
    """Example pictures of the Hub's inference widget, at their places in the repository."""
    return [
        {"src": f"samples/{label}.png", "example_title": f"Generated phantom, drawn as {label}"}
        for label in labels
        if label in LABEL_NAMES
    ]
