"""The student's model card: metadata for the Hub, and a page that says what the model is and what it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from hf_kdmri.evaluation.report import escape_markdown, results_table
from hf_kdmri.hub.card_text import (
    CITATION,
    METHOD_CITATION,
    PIPELINE_SNIPPET,
    SPLITS,
    TIMM_SNIPPET,
    WINDOW_SNIPPET,
)
from hf_kdmri.hub.own_data_card import OwnDataFacts, count_lines, name_classes, own_split_text

STUDENT_ROW, BASELINE_ROW = "Distilled student", "Student alone"
_COLUMNS, _LISTED_LABELS = 6, 30


@dataclass(frozen=True)
class StudentCardFacts:
    """What the card tells that the model folder does not know by itself.

    Args:
        model_name: Short name, for instance `kdmri-student`.
        results: One row for each model as for `results_table`, one of them with model "Distilled student"; rows may
            also carry `recall_per_class` and `patients` as `ClassificationReport` returns them.
        teacher: Architecture or Hub name of the teacher.
        losses: Each loss term with its weight and settings, for instance `{"cross-entropy": "weight 1"}`.
        split: `patient_groups`, `cvind` or `random_slices`; with `own_data`, a few words of one's own.
        fold: 0 to 4, or None where own data brought their own splits.
        seed: Of this run.
        training_command: The command that made the weights.
        versions: Package to version.
        machine: Where the milliseconds were measured.
        phantom: True if the data were generated; the card then says so loudly and claims nothing about MRI.
        repo_id: `user/name` on the Hub for the snippets; a local folder stands there otherwise.
        dataset_id: `user/name` of the data set on the Hub, for the metadata.
        own_data: The data set, where it is not the Figshare slices; the card then speaks of it instead.
        data_note: A further sentence about the data, for instance that the images were re-encoded.
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
    repo_id: str | None = None
    dataset_id: str | None = None
    own_data: OwnDataFacts | None = None
    data_note: str = field(default="")

    def __post_init__(self) -> None:
        """Refuse what would make a false or broken card."""
        if self.own_data is None and self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.own_data is not None and self.phantom:
            raise ValueError("the data are either a data set of one's own or generated phantoms, not both")
        for name in ("repo_id", "dataset_id"):
            if (value := getattr(self, name)) is not None:
                validate_repo_id(value)
        for name in ("model_name", "teacher", "training_command", "machine"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; the card must state it")
        if not any(row.get("model") == STUDENT_ROW for row in self.results):
            models = [row.get("model") for row in self.results]
            raise ValueError(f"the results have rows for {models}; expected one named {STUDENT_ROW!r}")


class _Markdown(str):
    """Text that is Markdown already; everything else is escaped when the template prints it."""


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
    results = _Markdown(results_table(facts.results))
    student = next(row for row in facts.results if row["model"] == STUDENT_ROW)
    model_id = facts.repo_id or "path/to/student"
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, finalize=_escape, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    body = environment.from_string(files("model_cards").joinpath("student.md").read_text(encoding="utf-8")).render(
        model_name=facts.model_name,
        phantom=facts.phantom,
        phantom_suffix=" of generated phantoms" if facts.phantom else "",
        architecture=architecture,
        parameters=f"{student['parameters']:,}" if student.get("parameters") else "uncounted",
        teacher=facts.teacher,
        own=own,
        unit="slices" if own is None else "images",
        counts=_Markdown("") if own is None else _table(*count_lines(own, labels)),
        labels_text=name_classes(labels),
        label_order=", ".join(f"{index} {label}" for index, label in enumerate(labels[:_LISTED_LABELS])),
        more_labels=len(labels) > _LISTED_LABELS,
        pipeline_snippet=_code(PIPELINE_SNIPPET.format(model=model_id), "python"),
        timm_snippet=_code(
            TIMM_SNIPPET.format(model=f"hf-hub:{model_id}" if facts.repo_id else f"local-dir:{model_id}"), "python"
        ),
        window_snippet=_code(WINDOW_SNIPPET, "python"),
        citation=_code(METHOD_CITATION if own is not None else CITATION + METHOD_CITATION, "bibtex"),
        command=_code(facts.training_command, "bash"),
        split_text=_Markdown(SPLITS[facts.split] if own is None else own_split_text(own)),
        chosen=f"seed {facts.seed}" if facts.fold is None else f"fold {facts.fold}, seed {facts.seed}",
        seed=facts.seed,
        data_note=facts.data_note,
        machine=facts.machine,
        results=results,
        recalls=_recall_table(facts.results, labels),
        patients=_patient_table(facts.results),
        losses=_Markdown("".join(f"- {escape_markdown(k)}: {escape_markdown(v)}\n" for k, v in facts.losses.items())),
        has_baseline=any(row["model"] == BASELINE_ROW for row in facts.results),
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        height=height,
        width=width,
        mean=", ".join(f"{value:g}" for value in mean),
        std=", ".join(f"{value:g}" for value in std),
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    card = ModelCard(f"---\n{_metadata(facts, student).to_yaml()}\n---\n\n{body}\n")
    card.save(Path(folder) / "README.md")
    return Path(folder) / "README.md"


def _metadata(facts: StudentCardFacts, student: Mapping[str, Any]) -> ModelCardData:
    """Build the YAML head, with the student's results as a model index."""
    own, unit = facts.own_data, "slices" if facts.own_data is None else "images"
    dataset_id = facts.dataset_id if own is None else own.hub_id
    dataset_type = "generated-phantoms" if facts.phantom else dataset_id or "figshare-brain-tumor"
    dataset_name = "Generated phantom slices" if facts.phantom else "Figshare brain tumour data set (Cheng)"
    if own is not None:
        dataset_type, dataset_name = own.slug, own.name

    def result(metric: str, name: str, value: float, args: dict[str, Any] | None = None) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_config=facts.split,
            dataset_split="test",
            dataset_args=None if facts.fold is None else {"fold": facts.fold},
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
    tags = ["knowledge-distillation", "timm"]
    if own is None:
        tags[1:1] = ["medical-imaging", "brain-mri", "brain-tumor"]
    return ModelCardData(
        model_name=facts.model_name,
        license="apache-2.0" if own is None else None,  # what other data allow is not ours to say
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*tags, "generated-phantoms", "not-for-use"] if facts.phantom else tags,
        datasets=None if facts.phantom or dataset_id is None else [dataset_id],
        metrics=["accuracy", "f1"],
        eval_results=evaluations,
    )


def _escape(value: object) -> object:
    """Escape whatever the template prints, unless it is Markdown already."""
    if value is None:
        raise ValueError("the model card's template was given None where it prints a fact")
    return value if isinstance(value, _Markdown) else escape_markdown(value)


def _code(text: str, language: str) -> _Markdown:
    """Fence code with more backticks than it holds in a row, so that nothing inside can end the block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Markdown(f"{fence}{language}\n{text.strip()}\n{fence}")


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> _Markdown:
    if not lines:
        return _Markdown("")
    rows = [[escape_markdown(cell) for cell in heading], [":--", *["--:"] * (len(heading) - 1)]]
    rows += [[escape_markdown(cell) for cell in line] for line in lines]
    return _Markdown("".join(f"| {' | '.join(row)} |\n" for row in rows))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _recall_table(results: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> _Markdown:
    """One row per model, or per class where these are too many for one line."""
    rows = [row for row in results if row.get("recall_per_class")]
    if not rows:
        return _Markdown("")
    recalls = {row["model"]: [_percent(row["recall_per_class"].get(label)) for label in labels] for row in rows}
    if len(labels) <= _COLUMNS:
        return _table(["Model", *labels], [[model, *cells] for model, cells in recalls.items()])
    lines = [[label, *cells] for label, *cells in zip(labels, *recalls.values(), strict=True)]
    return _table(["Class", *recalls], lines)


def _patient_table(results: Sequence[Mapping[str, Any]]) -> _Markdown:
    rows = [row for row in results if row.get("patients")]
    keys = ("accuracy", "macro_f1", "balanced_accuracy")
    lines = [
        [row["model"], *(_percent(row["patients"][key]) for key in keys), str(row["patients"]["n"])] for row in rows
    ]
    return _table(["Model", "Accuracy", "Macro F1", "Balanced accuracy", "n (patients)"], lines)
