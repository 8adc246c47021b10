"""Requests that only ask: who am I, what is in a repository, and the files themselves."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.hub.messages import Answer, Refused, Request, Route, as_json
from tests.hub.store import Commit, Entry, Hub, Repository
from tests.hub.write_routes import REPO

DATE = "2026-01-01T00:00:00.000Z"
RESOLVE = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"


def who_am_i(hub: Hub, request: Request) -> Answer:
    user = hub.user_of(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    token = {"displayName": "test", "role": user.role}
    orgs = [{"type": "org", "name": name} for name in user.orgs]
    return as_json({"type": "user", "name": user.name, "orgs": orgs, "auth": {"accessToken": token}})


def repo_info(hub: Hub, request: Request, kind: str, repo_id: str, revision: str | None = None) -> Answer:
    repository = hub.find(request, kind, repo_id)
    commit = repository.at(revision or "main")
    card = _card_data(commit)
    return as_json(
        {
            "_id": "0" * 24,
            "id": repo_id,
            "author": repository.namespace,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "lastModified": DATE,
            "createdAt": DATE,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "siblings": [
                {"rfilename": name, **(_sizes(entry) if "blobs" in request.query else {})}
                for name, entry in commit.files.items()
            ],
        }
    )


def _card_data(commit: Commit) -> dict[str, Any]:
    text = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
    parts = text.split("---\n")
    return (yaml.safe_load(parts[1]) or {}) if text.startswith("---\n") and len(parts) > 2 else {}


def _sizes(entry: Entry) -> dict[str, Any]:
    large = {"sha256": entry.sha256, "size": len(entry.data), "pointerSize": len(entry.pointer)}
    return {"size": len(entry.data), "blobId": entry.blob_id, **({"lfs": large} if entry.lfs else {})}


def tree(hub: Hub, request: Request, kind: str, repo_id: str, revision: str, folder: str | None = None) -> Answer:
    commit = hub.find(request, kind, repo_id).at(revision)
    prefix = f"{folder.strip('/')}/" if folder else ""
    names = [name for name in sorted(commit.files) if name.startswith(prefix)]
    if not names:
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    deep = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    folders = {
        name[: match.start()] for name in names for match in re.finditer("/", name) if match.start() >= len(prefix)
    }
    rows = [_folder_row(name) for name in sorted(folders) if deep or "/" not in name[len(prefix) :]]
    rows += [_file_row(commit, name) for name in names if deep or "/" not in name[len(prefix) :]]
    start = int(request.query.get("cursor", ["0"])[0])
    following = start + hub.page_size
    headers = {}
    if following < len(rows):
        headers["Link"] = f'<{hub.url}{request.path}?recursive={str(deep).lower()}&cursor={following}>; rel="next"'
    return as_json(rows[start:following], headers=headers)


def _folder_row(name: str) -> dict[str, Any]:
    return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}


def _file_row(commit: Commit, name: str) -> dict[str, Any]:
    entry = commit.files[name]
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(entry.data), "oid": entry.blob_id}
    if entry.lfs:
        row["lfs"] = {"oid": entry.sha256, "size": len(entry.data), "pointerSize": len(entry.pointer)}
    return {**row, "lastCommit": {"id": commit.oid, "title": commit.title, "date": DATE}}


def paths_info(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    commit = hub.find(request, kind, repo_id).at(revision)
    rows = []
    for asked in request.form().get("paths", []):
        name = asked.strip("/")
        if name in commit.files:
            rows.append(_file_row(commit, name))
        elif any(path.startswith(f"{name}/") for path in commit.files):
            rows.append(_folder_row(name))
    return as_json(rows)


def refs(hub: Hub, request: Request, kind: str, repo_id: str) -> Answer:
    repository = hub.find(request, kind, repo_id)

    def rows(names: dict[str, str], where: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in names.items()]

    answer = {"branches": rows(repository.branches, "heads"), "tags": rows(repository.tags, "tags")}
    return as_json({**answer, "converts": [], "pullRequests": []})


def commits(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repository = hub.find(request, kind, repo_id)
    rows, oid = [], repository.at(revision).oid
    while oid:
        found: Commit = repository.commits[oid]
        rows.append({"id": found.oid, "title": found.title, "message": "", "authors": [], "date": DATE})
        oid = found.parent or ""
    return as_json(rows)


def resolve(hub: Hub, request: Request, prefix: str | None, repo_id: str, revision: str, path: str) -> Answer:
    repository: Repository = hub.find(request, (prefix or "models").removesuffix("s"), repo_id)
    commit = repository.at(revision)
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Answer(404, b"Entry not found", headers)
    entry = commit.files[path]
    headers |= {"ETag": f'"{entry.blob_id}"', "Accept-Ranges": "bytes"}
    if not entry.lfs:
        return _content(request, entry.data, headers)
    headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.data))}
    return Answer(302, b"", {**headers, "Location": f"{hub.storage_url}/cdn/{entry.sha256}?Signature=secret"})


def from_storage(hub: Hub, request: Request, oid: str) -> Answer:
    if request.headers.get("Authorization"):
        raise Refused(400, "Only one auth mechanism allowed")
    return _content(request, hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def _content(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return Answer(304, b"", headers)
    if not asked or not any(asked.groups()):
        return Answer(200, data, headers)
    first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
    last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
    if first >= len(data):
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})


ROUTES: list[Route] = [
    ("GET", r"/api/whoami-v2", who_am_i),
    ("GET", rf"{REPO}", repo_info),
    ("GET", rf"{REPO}/revision/([^/]+)", repo_info),
    ("GET", rf"{REPO}/tree/([^/]+)(?:/(.+))?", tree),
    ("POST", rf"{REPO}/paths-info/([^/]+)", paths_info),
    ("GET", rf"{REPO}/refs", refs),
    ("GET", rf"{REPO}/commits/([^/]+)", commits),
    ("GET", RESOLVE, resolve),
    ("GET", r"/cdn/([0-9a-f]{64})", from_storage),
]
