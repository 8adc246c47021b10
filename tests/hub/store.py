"""What the server holds: users, repositories with their commits, large objects, collections."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.hub.faults import Fault
from tests.hub.messages import Refused, Request

GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.onnx", "*.parquet", "*.pt", "*.safetensors")
)


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and whether it may write."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and namespace in (self.name, *self.orgs)

    def may_read(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)


@dataclass(frozen=True)
class Entry:
    """One version of a file, in git itself or beside it as a large object."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return text.encode()

    @property
    def blob_id(self) -> str:
        """Git's name of the file, or of its pointer."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def compared_oid(self) -> str:
        """What the answer to preupload says of a file that is there."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """A commit with all files of its tree."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, Entry]


@dataclass
class Repository:
    """A repository of models, a data set or a Space."""

    kind: str
    repo_id: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    @property
    def files(self) -> dict[str, bytes]:
        """Content of the head, without what the Hub put there."""
        return {name: entry.data for name, entry in self.head.files.items() if name != ".gitattributes"}

    @property
    def titles(self) -> list[str]:
        """Of the commits of main, the newest first."""
        found, commit = [], self.head
        while True:
            found.append(commit.title)
            if commit.parent is None:
                return found
            commit = self.commits[commit.parent]

    def commit(self, title: str, files: Mapping[str, Entry], branch: str = "main") -> Commit:
        parent = self.branches.get(branch)
        content = json.dumps([parent, title, len(self.commits), {k: v.blob_id for k, v in sorted(files.items())}])
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), parent, title, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or the first characters of an oid name."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name)
        matches = [commit for commit in self.commits if len(name) >= 7 and commit.startswith(name)]
        if oid is None and not matches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid or matches[0]]


@dataclass
class Collection:
    """A list of repositories under one title."""

    slug: str
    title: str
    owner: str
    private: bool
    description: str | None
    items: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Hub:
    """Everything behind one address.

    Attributes:
        users: By token.
        objects: Large objects by sha256.
        requests: "METHOD /path status" of every request that was answered; "cut" instead of a status where not.
        uploads: sha256 of every large object that was sent, each time it was.
        faults: What goes wrong; see `Fault`.
        page_size: Of listings.
        slept: Seconds that clients of this process would have slept, once `use_hub` is told to.
    """

    url: str = ""
    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    page_size: int = 1000
    slept: list[float] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def storage_url(self) -> str:
        """Where large objects go: another host than the Hub's, so that no token may be sent there."""
        return self.url.replace("127.0.0.1", "localhost")

    def model(self, repo_id: str) -> Repository:
        return self.repositories["model", repo_id]

    def dataset(self, repo_id: str) -> Repository:
        return self.repositories["dataset", repo_id]

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> Repository:
        repository = Repository(kind, repo_id, private)
        repository.commit("initial commit", {".gitattributes": Entry(GITATTRIBUTES.encode(), lfs=False)})
        self.repositories[kind, repo_id] = repository
        return repository

    def user_of(self, request: Request) -> User | None:
        token = request.token
        if token is None:
            return None
        if token not in self.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def find(self, request: Request, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """The repository, if this request may see it, or with `write`, change it."""
        user, found = self.user_of(request), self.repositories.get((kind, repo_id))
        hidden = found is None or (found.private and not (user and user.may_read(found.namespace)))
        if found is None or hidden:
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and not (user and user.may_write(found.namespace)):
            raise Refused(403, f"You don't have the rights to write to {kind} {repo_id}")
        return found
