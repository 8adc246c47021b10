"""Requests about collections."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tests.hub.messages import Answer, Refused, Request, Route, as_json
from tests.hub.store import Collection, Hub

SLUG = r"/api/collections/([^/]+/[^/]+)"
_TITLE_LIMIT, _DESCRIPTION_LIMIT = 60, 150


def create(hub: Hub, request: Request) -> Answer:
    user, asked = hub.user_of(request), request.json()
    namespace, title = asked["namespace"], asked["title"]
    if user is None or not user.may_write(namespace):
        raise Refused(401 if user is None else 403, f"You cannot create a collection under {namespace}")
    if len(title) >= _TITLE_LIMIT or len(asked.get("description") or "") > _DESCRIPTION_LIMIT:
        raise Refused(400, "title or description too long")
    for there in hub.collections.values():
        if (there.owner, there.title) == (namespace, title):
            raise Refused(409, "You already have a collection with this title", slug=there.slug)
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{namespace}/{words}-{hashlib.sha256(title.encode()).hexdigest()[:24]}"
    hub.collections[slug] = Collection(slug, title, namespace, bool(asked.get("private")), asked.get("description"))
    return as_json(_row(hub.collections[slug]))


def get(hub: Hub, request: Request, slug: str) -> Answer:
    return as_json(_row(_find(hub, request, slug)))


def list_all(hub: Hub, request: Request) -> Answer:
    user = hub.user_of(request)
    owners = request.query.get("owner")
    found = [
        collection
        for collection in hub.collections.values()
        if (owners is None or collection.owner in owners)
        and not (collection.private and not (user and user.may_read(collection.owner)))
    ]
    rows = [_row(collection) for collection in found]
    return as_json([{key: value for key, value in row.items() if key != "position"} for row in rows])


def add_item(hub: Hub, request: Request, slug: str) -> Answer:
    collection, asked = _find(hub, request, slug, write=True), request.json()
    item = asked["item"]
    if (item["type"], item["id"]) not in hub.repositories:
        raise Refused(404, f"{item['type']} {item['id']} does not exist")
    if any((there["type"], there["id"]) == (item["type"], item["id"]) for there in collection.items):
        raise Refused(409, "Item already in the collection")
    note = {"note": {"text": asked["note"]}} if asked.get("note") else {}
    collection.items.append({"_id": f"{len(collection.items):024d}", **item, **note})
    return as_json(_row(collection))


def _find(hub: Hub, request: Request, slug: str, *, write: bool = False) -> Collection:
    user, found = hub.user_of(request), hub.collections.get(slug)
    if found is None or (found.private and not (user and user.may_read(found.owner))):
        raise Refused(404, "Collection not found")
    if write and not (user and user.may_write(found.owner)):
        raise Refused(403, f"You cannot change {slug}")
    return found


def _row(collection: Collection) -> dict[str, Any]:
    return {
        "slug": collection.slug,
        "title": collection.title,
        "owner": {"name": collection.owner},
        "description": collection.description,
        "items": [{**item, "position": place} for place, item in enumerate(collection.items)],
        "lastUpdated": "2026-01-01T00:00:00.000Z",
        "position": 0,
        "private": collection.private,
        "theme": "green",
        "upvotes": 0,
    }


ROUTES: list[Route] = [
    ("POST", r"/api/collections", create),
    ("GET", r"/api/collections", list_all),
    ("GET", SLUG, get),
    ("POST", rf"{SLUG}/items", add_item),
]
