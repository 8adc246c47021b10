"""The table of rooms in CONTRIBUTING.md is what the code keeps to."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

from tests.conftest import ROOT

# Belongs to no room: any may import it.
COMMON = {"hf_kdmri"} | {
    f"hf_kdmri/{name}.py"
    for name in ("foreign_models", "hub_names", "lazy_names", "secrets", "shipped", "whole_files", "wording")
}
PACKAGES = {"hf_kdmri", "dataset_script", "model_cards"}


def rooms_and_permissions() -> dict[str, set[str]]:
    """What each room may import, from the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("## The rooms")[1].split("\n## ")[0].splitlines()
        if line.startswith("|")
    ][2:]
    rooms = {row[0].strip("`"): row[2] for row in rows}
    short = {room.removeprefix("hf_kdmri/").removesuffix(".py"): room for room in rooms}
    entrances = {"train_kd.py", "hf_kdmri/cli"}  # nothing imports them
    return {
        room: (rooms.keys() - entrances if allowed == "all" else {short[name] for name in allowed.split(", ")})
        if allowed != "–"
        else set()
        for room, allowed in rooms.items()
    }


def files() -> list[Path]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [*found, ROOT / "train_kd.py"]


def room_of(parts: tuple[str, ...], rooms: set[str]) -> str | None:
    """The room of a module given by the parts of its path or name, None outside this repository."""
    if parts[0] not in PACKAGES | {"train_kd"}:
        return None
    candidates = {"/".join(parts[:2]), f"{'/'.join(parts[:2])}.py", parts[0], f"{parts[0]}.py"}
    found = candidates & (rooms | COMMON - {"hf_kdmri"})
    return max(found, key=len) if found else "/".join(parts[:2] if len(parts) > 1 else parts)


def imported(tree: ast.AST) -> list[tuple[str, ...]]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package in full"
            names += [(*str(node.module).split("."), alias.name) for alias in node.names]
    return names


def crossings(*, only_top: bool) -> dict[str, dict[str, set[str]]]:
    """For each room, the other rooms that it imports, with the files that do."""
    rooms = set(rooms_and_permissions())
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in files():
        name = path.relative_to(ROOT)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if only_top:
            tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        room = room_of(name.with_suffix("").parts, rooms)
        assert room is not None
        for module in imported(tree):
            other = room_of(module, rooms)
            if module == ("hf_kdmri", "__version__") or other in COMMON:
                continue
            if other is not None and other != room:
                found[room][other].add(str(name))
    return found


def test_every_room_is_in_the_table_and_exists() -> None:
    rooms = rooms_and_permissions()
    for room in rooms:
        assert (ROOT / room).exists(), f"CONTRIBUTING.md has a room {room}, which is not there"
    for path in (ROOT / "hf_kdmri").iterdir():
        name = str(path.relative_to(ROOT))
        if any(path.glob("*.py")) or path.suffix == ".py":
            if name not in {*COMMON, "hf_kdmri/__init__.py"}:
                assert name in rooms, f"{name} has no row in CONTRIBUTING.md's table of rooms"


def test_rooms_import_what_the_table_allows() -> None:
    allowed = rooms_and_permissions()
    broken = [
        f"{', '.join(sorted(importers))} imports {other}, but {room} may import {sorted(allowed[room]) or 'nothing'}"
        for room, others in crossings(only_top=False).items()
        for other, importers in others.items()
        if other not in allowed.get(room, set()) - {room}
    ]
    assert not broken, "\n".join(broken)


def test_what_every_room_may_import_imports_no_room() -> None:
    found = crossings(only_top=False)
    assert not {room: others for room, others in found.items() if room in COMMON}


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    # Only imports at the top of a file; load_slices imports its builder when it is called.
    graph = {room: set(others) for room, others in crossings(only_top=True).items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
