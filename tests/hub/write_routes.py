"""Requests that change something: repositories, large objects, commits, tags, branches."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from typing import Any

import yaml

from tests.hub.messages import Answer, Refused, Request, Route, as_json
from tests.hub.store import Entry, Hub, Repository

PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
REPO = r"/api/(model|dataset|space)s/([^/]+/[^/]+)"
GIT = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs"
_REGULAR_LIMIT = 10_000_000


def create_repo(hub: Hub, request: Request) -> Answer:
    user, asked = hub.user_of(request), request.json()
    if user is None:
        raise Refused(401, "Invalid username or password.")
    kind, namespace = asked.get("type") or "model", asked.get("organization") or user.name
    repo_id = f"{namespace}/{asked['name']}"
    if not user.may_write(namespace):
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    url = f"{hub.url}/{PREFIX[kind]}{repo_id}"
    if (kind, repo_id) in hub.repositories:
        raise Refused(409, f"You already created this {kind} repo", url=url)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.create(kind, repo_id, private=private)
    return as_json({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(hub: Hub, request: Request) -> Answer:
    asked = request.json()
    user = hub.user_of(request)
    namespace = asked.get("organization") or (user.name if user else "")
    repository = hub.find(request, asked.get("type") or "model", f"{namespace}/{asked['name']}", write=True)
    del hub.repositories[repository.kind, repository.repo_id]
    return as_json({})


def change_settings(hub: Hub, request: Request, kind: str, repo_id: str) -> Answer:
    repository, asked = hub.find(request, kind, repo_id, write=True), request.json()
    if "visibility" in asked or "private" in asked:
        repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    return as_json({})


def validate_yaml(hub: Hub, request: Request) -> Answer:
    content = request.json()["content"]
    parts = content.split("---\n")
    if not content.startswith("---\n") or len(parts) < 3:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        data = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": f"invalid YAML: {error}"}], "warnings": []}, 400)
    wrong = [
        {"message": f'"{name}" must be a string or an array of strings'}
        for name in ("base_model", "datasets", "tags", "license")
        if not isinstance(data.get(name, ""), (str, list))
    ]
    return as_json({"errors": wrong, "warnings": []}, 400 if wrong else 200)


def preupload(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repository = hub.find(request, kind, repo_id, write=True)
    there = repository.at(revision).files
    patterns = [line.split()[0] for line in there[".gitattributes"].data.decode().splitlines() if "=lfs" in line]
    files = []
    for file in request.json()["files"]:
        name, sample = file["path"], base64.b64decode(file["sample"])
        large = file["size"] > _REGULAR_LIMIT or not _is_text(sample)
        large = large or any(fnmatch.fnmatch(name.rsplit("/", 1)[-1], pattern) for pattern in patterns)
        oid = there[name].compared_oid if name in there else None
        files.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return as_json({"files": files})


def _is_text(sample: bytes) -> bool:
    try:
        return b"\0" not in sample and bool(sample.decode("utf-8", errors="strict") or True)
    except UnicodeDecodeError as error:
        return error.start > len(sample) - 4  # a character that the sample's end cut


def lfs_batch(hub: Hub, request: Request, prefix: str | None, repo_id: str) -> Answer:
    kind = (prefix or "models").removesuffix("s")
    hub.find(request, kind, repo_id, write=True)
    objects: list[dict[str, Any]] = []
    for item in request.json()["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.objects:
            verify = f"{hub.url}/{PREFIX[kind]}{repo_id}.git/info/lfs/objects/verify"
            upload = f"{hub.storage_url}/storage/{item['oid']}?X-Amz-Signature=secret-of-the-storage"
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(answer)
    return as_json({"transfer": "basic", "objects": objects})


def store_object(hub: Hub, request: Request, oid: str) -> Answer:
    if request.headers.get("Authorization"):
        raise Refused(400, "Only one auth mechanism allowed")  # as the storage behind signed addresses says
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "BadDigest")
    hub.uploads.append(oid)
    hub.objects[oid] = request.body
    return Answer(200)


def verify_object(hub: Hub, request: Request, prefix: str | None, repo_id: str) -> Answer:
    hub.find(request, (prefix or "models").removesuffix("s"), repo_id, write=True)
    asked = request.json()
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "LFS object not found")
    return as_json({})


def commit(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repository = hub.find(request, kind, repo_id, write=True)
    if revision not in repository.branches:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header, files = lines[0]["value"], dict(repository.at(revision).files)
    if header.get("parentCommit") not in (None, repository.branches[revision]):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        _apply(hub, files, line["key"], line["value"])
    made = repository.commit(header["summary"], files, revision)
    url = f"{hub.url}/{PREFIX[kind]}{repo_id}/commit/{made.oid}"
    return as_json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _apply(hub: Hub, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"])
        if not _is_text(data):
            raise Refused(400, f"Your push was rejected because it contains binary files: {path}")
        files[path] = Entry(data, lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in hub.objects:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = Entry(hub.objects[value["oid"]], lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise Refused(400, f"unknown operation {key}")


def create_tag(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    return _create_ref(hub.find(request, kind, repo_id, write=True), request.json()["tag"], revision, "tags")


def delete_tag(hub: Hub, request: Request, kind: str, repo_id: str, tag: str) -> Answer:
    if hub.find(request, kind, repo_id, write=True).tags.pop(tag, None) is None:
        raise Refused(404, f"Tag not found: {tag}", "RevisionNotFound")
    return as_json({})


def create_branch(hub: Hub, request: Request, kind: str, repo_id: str, branch: str) -> Answer:
    start = (request.json() if request.body else {}).get("startingPoint", "main")
    return _create_ref(hub.find(request, kind, repo_id, write=True), branch, start, "branches")


def delete_branch(hub: Hub, request: Request, kind: str, repo_id: str, branch: str) -> Answer:
    repository = hub.find(request, kind, repo_id, write=True)
    if branch == "main" or repository.branches.pop(branch, None) is None:
        raise Refused(403 if branch == "main" else 404, f"Cannot delete {branch}", "RevisionNotFound")
    return as_json({})


def _create_ref(repository: Repository, name: str, revision: str, where: str) -> Answer:
    refs = repository.tags if where == "tags" else repository.branches
    if name in refs:
        raise Refused(409, f"{where} reference already exists: {name}")
    refs[name] = repository.at(revision).oid
    return as_json({"name": name})


ROUTES: list[Route] = [
    ("POST", r"/api/repos/create", create_repo),
    ("DELETE", r"/api/repos/delete", delete_repo),
    ("PUT", rf"{REPO}/settings", change_settings),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{REPO}/preupload/([^/]+)", preupload),
    ("POST", rf"{GIT}/objects/batch", lfs_batch),
    ("POST", rf"{GIT}/objects/verify", verify_object),
    ("PUT", r"/storage/([0-9a-f]{64})", store_object),
    ("POST", rf"{REPO}/commit/([^/]+)", commit),
    ("POST", rf"{REPO}/tag/([^/]+)", create_tag),
    ("DELETE", rf"{REPO}/tag/([^/]+)", delete_tag),
    ("POST", rf"{REPO}/branch/([^/]+)", create_branch),
    ("DELETE", rf"{REPO}/branch/([^/]+)", delete_branch),
]
