"""Publish a finished run: the student, its teacher, and a collection that holds them with the data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, RepoCard

from hf_kdmri.hub.contents import REQUIRED_FILES, refuse_secrets
from hf_kdmri.hub.hub_errors import (
    TIMEOUT,
    PublishError,
    check_login,
    check_repo_id,
    impatient_client,
    patiently,
    push_errors,
)
from hf_kdmri.hub.provenance import KEY, teacher_of
from hf_kdmri.hub.publish import push_repositories
from hf_kdmri.hub.repository import Journal, PushedRepository, RepositoryPlan
from hf_kdmri.hub.run_files import read_metrics, student_plan, teacher_plan

_LONGEST_TITLE, _LONGEST_DESCRIPTION = 59, 150  # of a collection


@dataclass(frozen=True)
class Release:
    """What a push of a run sends.

    Args:
        student: The student's repository.
        teacher: The teacher's; None where it is left out or is someone else's on the Hub.
        dataset_id: The data set's name on the Hub, for links and the collection.
        notes: What is left out and why.
    """

    student: RepositoryPlan
    teacher: RepositoryPlan | None = None
    dataset_id: str | None = None
    notes: Sequence[str] = field(default_factory=list)

    @property
    def repositories(self) -> list[RepositoryPlan]:
        """In the order they are sent: the student last, so that its links lead somewhere."""
        return [self.student] if self.teacher is None else [self.teacher, self.student]

    @property
    def collection_title(self) -> str:
        """Of the collection; the same each time, so that a repeated push finds it."""
        return f"{self.student.repo_id.split('/')[1]}: student, teacher, data"[:_LONGEST_TITLE]


@dataclass(frozen=True)
class Released:
    """What a push of a run did.

    Args:
        repositories: What was found and done in each, the student last.
        collection_url: Of the collection, or None.
    """

    repositories: Sequence[PushedRepository]
    collection_url: str | None


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return (Path(folder) / "config.yaml").is_file() and not (Path(folder) / "config.json").is_file()


def plan_release(
    run: str | Path,
    repo_id: str,
    *,
    teacher: bool = True,
    onnx: bool = True,
    dataset_id: str | None = None,
    stage: str = "student",
) -> Release:
    """Gather what a finished run publishes, and write what is still missing of it into `RUN/student`.

    Written are the ONNX file, where the extra is installed and it is older than the weights, and the sample images.
    The card's links and the provenance in `config.json` are made for this destination and not written to the run.

    Args:
        run: Run folder of one fold.
        repo_id: `user/name` of the student; the teacher's is `user/name-teacher`.
        teacher: Also publish the teacher.
        onnx: Also publish `onnx/model.onnx`.
        dataset_id: `user/name` of the data set on the Hub.
        stage: "student", or "baseline" for the one without a teacher, from `RUN/baseline`; then without `teacher`.

    Raises:
        FileNotFoundError: The run is not finished or has several folds.
        ValueError: A name is not `user/name`, or a student without a teacher was to be published with one.
        PublishError: A file holds a token, or the ONNX file does not agree with the model.
    """
    run = Path(run)
    if stage != "student" and teacher:
        raise ValueError("the student alone had no teacher: publish it without one")
    for name in (repo_id, dataset_id):
        if name is not None:
            check_repo_id(name)
    metrics = read_metrics(run)
    options = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}
    teacher_id, foreign = _teacher_id(run, repo_id, metrics, options) if teacher else (None, False)
    notes = []
    if foreign:
        notes.append(f"the teacher is {teacher_id} on the Hub: linked, not published again")
    dataset_id = dataset_id or _dataset_of_card(run / stage / "README.md")
    student = student_plan(run, repo_id, metrics, options, teacher_id, dataset_id, onnx=onnx, notes=notes, stage=stage)
    taught_by = None
    if teacher and not foreign:
        if teacher_id is None:
            notes.append("no teacher: the run has none in teacher/")
        else:
            taught_by = teacher_plan(run / "teacher", metrics, teacher_id, repo_id, dataset_id)
    for plan in (student, taught_by):
        if plan is not None:
            refuse_secrets(plan.files)
    return Release(student, taught_by, dataset_id, notes)


def push_release(
    release: Release,
    *,
    private: bool = False,
    tag: str | None = None,
    collection: bool = True,
    timeout: float = TIMEOUT,
    token: str | None = None,
) -> Released:
    """Send a release: one commit per repository, the teacher first, then tags, then the collection.

    Args:
        release: From `plan_release`.
        private: Make new repositories and a new collection private.
        tag: Name of the release, set on the commit of each repository.
        collection: Also put the repositories, and the data set where it is known, into a collection.
        timeout: Seconds without a byte from the Hub.
        token: Instead of the one of `hf auth login` or HF_TOKEN.

    Raises:
        PublishError: The Hub refused or could not be reached; the message says what is there already.
    """
    journal = Journal()
    if collection and release.dataset_id is not None:
        _refuse_missing_dataset(release.dataset_id, timeout, token)
    pushed = push_repositories(
        release.repositories, private=private, tag=tag, timeout=timeout, token=token, journal=journal
    )
    if not collection:
        return Released(pushed, None)
    try:
        with impatient_client(timeout):
            return Released(pushed, _collect(release, private=private, token=token))
    except PublishError as error:
        raise journal.after(error) from None


def _refuse_missing_dataset(dataset_id: str, timeout: float, token: str | None) -> None:
    check_login("push", token)
    api = HfApi(token=token, library_name="hf_kdmri")
    with push_errors(f"look at dataset {dataset_id}", api), impatient_client(timeout):
        if not patiently(lambda: api.repo_exists(dataset_id, repo_type="dataset")):
            raise PublishError(
                f"there is no dataset {dataset_id} on the Hub, or your token cannot see it: upload it first (python -m "
                "dataset_script.upload), or leave it out of the collection with --no-collection. Nothing was sent."
            )


def _collect(release: Release, *, private: bool, token: str | None) -> str:
    api = HfApi(token=token, library_name="hf_kdmri")
    items = [(plan.repo_id, plan.kind) for plan in reversed(release.repositories)]
    if release.dataset_id is not None:
        items.append((release.dataset_id, "dataset"))
    with push_errors(f"the collection {release.collection_title!r}", api):
        collection = patiently(
            lambda: api.create_collection(
                release.collection_title,
                namespace=release.student.repo_id.split("/")[0],
                description="A small image classifier, the teacher it was distilled from, and the data."[
                    :_LONGEST_DESCRIPTION
                ],
                private=private,
                exists_ok=True,
            )
        )
        there = {(item.item_id, item.item_type) for item in collection.items}
        for item_id, kind in items:
            if (item_id, kind) not in there:
                patiently(
                    lambda item_id=item_id, kind=kind: api.add_collection_item(  # type: ignore[misc]
                        collection.slug, item_id, kind, exists_ok=True
                    )
                )
    return f"{api.endpoint}/collections/{collection.slug}"


def _teacher_id(
    run: Path, repo_id: str, metrics: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[str | None, bool]:
    """The teacher's repository, and whether it is there already and not ours to publish."""
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    architecture = metrics["models"].get("teacher", {}).get("architecture", "")
    told = (config.get(KEY) or {}).get("teacher") or teacher_of(options, architecture)
    if "hub_id" in told:
        return told["hub_id"], True
    if not all((run / "teacher" / name).is_file() for name in REQUIRED_FILES):
        return None, False
    return f"{repo_id}-teacher", False


def _dataset_of_card(card: Path) -> str | None:
    """The Hub name that the card's head gives for its data."""
    if not card.is_file():
        return None
    names = RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict().get("datasets") or []
    return next((name for name in names if name.count("/") == 1), None)
