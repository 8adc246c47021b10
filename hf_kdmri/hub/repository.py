"""Bring one repository on the Hub to a given content, in one commit, and say what is there if that breaks off."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from hf_kdmri.hub.contents import Content, content_size
from hf_kdmri.hub.hub_errors import PublishError, patiently, push_errors
from hf_kdmri.whole_files import sha256_of

_FILES_AT_ONCE = 8  # uploaded together; after each such group it is known what has arrived


def _none_is_stale(name: str) -> bool:
    return False


@dataclass(frozen=True)
class RepositoryPlan:
    """What a repository is to hold.

    Args:
        repo_id: `user/name`.
        files: By path in the repository.
        message: Of the commit.
        kind: `model` or `dataset`.
        is_stale: Whether a file that is there and not in `files` is one of ours, to be deleted in the same commit.
    """

    repo_id: str
    files: Mapping[str, Content]
    message: str
    kind: str = "model"
    is_stale: Callable[[str], bool] = _none_is_stale

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """(path in the repository, size in bytes) of every file."""
        return tuple((name, content_size(content)) for name, content in self.files.items())

    @property
    def title(self) -> str:
        """How messages name the repository."""
        return self.repo_id if self.kind == "model" else f"{self.kind} {self.repo_id}"


@dataclass(frozen=True)
class PushedRepository:
    """What a push found and did.

    Args:
        plan: What it was to hold.
        oid: The commit that holds it.
        url: Of that commit.
        sent: Paths that were new or had changed; none where everything was there already.
        deleted: Paths that were deleted.
    """

    plan: RepositoryPlan
    oid: str
    url: str
    sent: tuple[str, ...]
    deleted: tuple[str, ...] = ()

    @property
    def was_there(self) -> bool:
        """Whether there was nothing to commit."""
        return not self.sent and not self.deleted


@dataclass
class Journal:
    """What a push has done so far, told if it breaks off."""

    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Add what has been done."""
        self.lines.append(line)

    def after(self, error: PublishError) -> PublishError:
        """The error with what is there already."""
        there = "".join(f"\n  {line}" for line in self.lines) if self.lines else "\n  nothing was sent"
        return PublishError(f"{error}\nSo far:{there}\nThe same command goes on from there and sends nothing twice.")


@dataclass
class RepositoryState:
    """A repository as it was when the push began.

    Args:
        plan: What it is to hold.
        head: Oid of the newest commit; None where there is no such repository.
        send: Paths that are missing there or differ.
        delete: Paths of ours that are there and no longer wanted.
        tags: Name to oid.
    """

    plan: RepositoryPlan
    head: str | None
    send: tuple[str, ...]
    delete: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


def inspect(plan: RepositoryPlan, api: HfApi, *, private: bool, tag: str | None) -> RepositoryState:
    """Look, before anything is sent, whether the plan can be carried out and what it needs.

    Args:
        plan: What the repository is to hold.
        api: The client.
        private: Whether it is to be private.
        tag: To be set on the commit, or None.

    Raises:
        PublishError: a public repository where a private one is asked for, or a tag that is on another commit.
    """
    with push_errors(f"look at {plan.title}", api):
        try:
            info = patiently(lambda: api.repo_info(plan.repo_id, repo_type=plan.kind))
        except RepositoryNotFoundError:
            return RepositoryState(plan, None, tuple(plan.files))
        if private and not info.private:
            raise PublishError(
                f"{plan.title} is public already, and --private makes only new repositories private: change it in its "
                "settings, or push without --private. Nothing was sent."
            )
        there = {entry.path: entry for entry in _list_files(plan, api, str(info.sha))}
        refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.kind))
    state = RepositoryState(
        plan,
        str(info.sha),
        tuple(name for name, content in plan.files.items() if not _is_there(there.get(name), content)),
        tuple(sorted(name for name in there if name not in plan.files and plan.is_stale(name))),
        {ref.name: ref.target_commit for ref in refs.tags},
    )
    _refuse_moved_tag(state, tag)
    return state


def _list_files(plan: RepositoryPlan, api: HfApi, revision: str) -> Sequence[RepoFile]:
    def ask() -> list[RepoFile]:
        entries = api.list_repo_tree(plan.repo_id, recursive=True, revision=revision, repo_type=plan.kind)
        return [entry for entry in entries if isinstance(entry, RepoFile)]

    return patiently(ask)


def _is_there(entry: RepoFile | None, content: Content) -> bool:
    if entry is None or entry.size != content_size(content):
        return False
    if entry.lfs is not None:
        local = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
        return entry.lfs.sha256 == local
    return entry.blob_id == git_hash(content if isinstance(content, bytes) else Path(content).read_bytes())


def _refuse_moved_tag(state: RepositoryState, tag: str | None) -> None:
    if tag is None or tag not in state.tags:
        return
    if state.send or state.delete or state.tags[tag] != state.head:
        raise PublishError(
            f"{state.plan.title} has a tag {tag} already, on commit {state.tags[tag][:10]} with other files; a release "
            "is never changed: choose another tag. Nothing was sent."
        )


def carry_out(
    state: RepositoryState, api: HfApi, journal: Journal, *, private: bool, tag: str | None
) -> PushedRepository:
    """Create the repository if it is new, upload, commit once, tag.

    Args:
        state: From `inspect`; if the repository has changed since, nothing is committed.
        api: The client.
        journal: Gets a line for whatever is done.
        private: Make a new repository private.
        tag: To be set on the commit, or None.

    Raises:
        PublishError: the Hub refused, could not be reached, or took another's commit first.
    """
    plan = state.plan
    with push_errors(f"push to {plan.title}", api):
        head = state.head
        if head is None:
            patiently(lambda: api.create_repo(plan.repo_id, repo_type=plan.kind, private=private, exist_ok=True))
            journal.note(f"{plan.title}: repository created, {'private' if private else 'public'}")
            head = str(patiently(lambda: api.repo_info(plan.repo_id, repo_type=plan.kind)).sha)
        oid = head
        if state.send or state.delete:
            oid = _commit(state, head, api, journal)
            journal.note(f"{plan.title}: complete, commit {oid[:10]} with all {len(plan.files)} files")
        else:
            journal.note(f"{plan.title}: was there already, commit {oid[:10]}")
        if tag is not None:
            _set_tag(plan, api, tag, oid)
            journal.note(f"{plan.title}: tag {tag}")
    prefix = "" if plan.kind == "model" else f"{plan.kind}s/"
    return PushedRepository(plan, oid, f"{api.endpoint}/{prefix}{plan.repo_id}/commit/{oid}", state.send, state.delete)


def _commit(state: RepositoryState, head: str, api: HfApi, journal: Journal) -> str:
    plan = state.plan
    additions = [CommitOperationAdd(name, plan.files[name]) for name in state.send]
    for start in range(0, len(additions), _FILES_AT_ONCE):
        group = additions[start : start + _FILES_AT_ONCE]
        api.preupload_lfs_files(plan.repo_id, group, repo_type=plan.kind, free_memory=False)
        if arrived := [operation.path_in_repo for operation in group if operation._is_uploaded]:
            journal.note(f"{plan.title}: uploaded, not in a commit yet: {', '.join(arrived)}")
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [*additions]
    operations += [CommitOperationDelete(name) for name in state.delete]
    try:
        # Not upload_folder, which may split a folder over several commits.
        commit = patiently(
            lambda: api.create_commit(
                plan.repo_id,
                operations=operations,
                commit_message=plan.message,
                parent_commit=head,
                repo_type=plan.kind,
            )
        )
    except (HfHubHTTPError, HTTPError) as error:
        oid = _committed_after_all(state, head, api, error)
        if oid is None:
            raise
        return oid
    return commit.oid


def _committed_after_all(state: RepositoryState, head: str, api: HfApi, error: Exception) -> str | None:
    """The new head, where the commit was made and only the answer got lost."""
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
        return None
    try:
        now = inspect(state.plan, api, private=False, tag=None)
    except PublishError:
        return None  # the first error tells more
    return now.head if now.head != head and not now.send and not now.delete else None


def _set_tag(plan: RepositoryPlan, api: HfApi, tag: str, oid: str) -> None:
    patiently(lambda: api.create_tag(plan.repo_id, tag=tag, revision=oid, repo_type=plan.kind, exist_ok=True))
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.kind))
    target = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
    if target != oid:
        raise PublishError(
            f"another push set the tag {tag} of {plan.title} on commit {str(target)[:10]} meanwhile; the files of this "
            f"push are in commit {oid[:10]}: give it another tag"
        )
