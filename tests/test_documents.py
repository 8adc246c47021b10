"""Pages that people read: their links lead somewhere, and the version is one everywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import hf_kdmri
from tests.conftest import PROJECT, ROOT


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    # dataset_card.md is a template: test_convert.py looks at the links of what it becomes
    found += [path for path in (ROOT / "dataset_script").glob("*.md") if path.name != "dataset_card.md"]
    found += [*(ROOT / "models").rglob("README.md"), ROOT / "space" / "README.md"]
    return sorted(found)


def text_outside_code(path: Path) -> str:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda match: "x" * len(match[0]), text)


def links(path: Path) -> list[str]:
    text = text_outside_code(path)
    targets = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    return targets + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(name if name not in found else f"{name}-{found[name]}")
        found[name] = found.get(name, 0) + 1
    return names


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in ("https", "mailto"), f"{link}: give https"
            assert parts.scheme == "mailto" or re.fullmatch(r"[\w.-]+\.[a-z]{2,}(:\d+)?", parts.netloc), link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert ROOT in target.parents and target.exists(), f"{link} leads nowhere"
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), f"{link}: no such heading in {target.name}"


def test_every_page_of_docs_can_be_found() -> None:
    linked = {(page.parent / urlsplit(link).path).resolve() for page in pages() for link in links(page)}
    orphans = {path for path in (ROOT / "docs").rglob("*.md")} - linked
    assert not orphans, f"no page links to {sorted(path.name for path in orphans)}"


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_kdmri.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == hf_kdmri.__version__
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", heading) for heading in headings if heading != "Unreleased")


def test_changelog_has_the_kinds_of_keep_a_changelog_and_each_once() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", part, re.MULTILINE)
        assert len(kinds) == len(set(kinds))
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_make_targets_of_contributing_exist() -> None:
    named = set(re.findall(r"`make ([a-z][a-z-]*)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    for target in sorted(named):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_extras_that_are_named_are_there() -> None:
    extras = PROJECT["optional-dependencies"]
    sources = [*pages(), *(ROOT / "configs").rglob("*.yaml")]
    sources += [path for part in ("hf_kdmri", "tests", "benchmarks", "space") for path in (ROOT / part).rglob("*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), extra)
        for path in sources
        for group in re.findall(r"hf_kdmri\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r", *", group)
    }
    assert len(named) > 5 and not [place for place in sorted(named) if place[1] not in extras]
