from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_script import audit, explore
from dataset_script.split_audit import Slices, audit_split, read_slices
from hf_kdmri.data.leakage import turned


@pytest.fixture(scope="module")
def slices(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Slices:
    return read_slices(phantom_dir, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def page(slices: Slices) -> str:
    return explore.explore_page(slices, note="re-encoded <pictures>")


def run(module, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


class Page(HTMLParser):
    """Collects what a page would load, and checks that its elements close."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset") or (name in ("href", "xlink:href") and tag != "a"):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_slices_are_in_order_and_belong_together(slices: Slices) -> None:
    assert slices.numbers == list(range(1, 61))
    assert slices.small.shape == (60, 48, 48)
    row = slices.dataset[17]
    assert (row["slice"], row["pid"], row["label"]) == (18, slices.pids[17], slices.labels[17])


def test_audit_of_a_split_tells_leaking_from_clean(slices: Slices) -> None:
    clean, leaking = audit_split(slices, "patient_groups", 0), audit_split(slices, "random_slices", 0)
    assert clean.shared_groups == 0 < leaking.shared_groups
    assert sorted([*clean.test, *clean.train]) == list(range(60))
    assert clean.accuracy == np.mean(slices.labels[clean.test] == slices.labels[clean.nearest])
    loose = audit_split(slices, "patient_groups", 0, max_distance=64, min_correlation=0)
    assert len(loose.near_duplicates) > len(clean.near_duplicates)
    assert {pair.index_a for pair in loose.near_duplicates} <= set(loose.test.tolist())
    assert {pair.index_b for pair in loose.near_duplicates} <= set(loose.train.tolist())


def test_audit_command_on_slices(
    phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data_dir", phantom_dir, "--cache_dir", tmp_path / "cache", "--json", tmp_path / "audit.json"]
    run(audit, monkeypatch, *options)
    assert "no authors' folds" in (printed := capsys.readouterr().out)
    assert "patient_groups" in printed and "random_slices" in printed
    written = json.loads((tmp_path / "audit.json").read_text())
    assert [(split["config"], split["fold"]) for split in written["splits"]] == [
        (config, fold) for config in ("patient_groups", "random_slices") for fold in range(5)
    ]
    assert "patient_groups, 5 folds: 1-NN" in " ".join(printed.split())
    for split in written["splits"]:
        assert split["train_slices"] + split["test_slices"] == 60
        assert 0 <= split["nearest_neighbor_accuracy"] <= 1


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of three and two images; [a]/2.png and 0.png are one picture, mirrored."""
    rng = np.random.default_rng(0)
    images = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize((90, 90), Image.Resampling.BICUBIC))
        for _ in range(4)
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "[a]").mkdir(parents=True)
    two.mkdir()
    for number, image in enumerate(images[:3]):
        Image.fromarray(image).save(one / "[a]" / f"{number}.png")
    Image.fromarray(np.ascontiguousarray(turned(images[2], 4))).save(two / "0.png")
    Image.fromarray(images[3]).save(two / "1.png")
    (two / "notes.txt").write_text("no picture")
    return one, two


def test_audit_command_on_two_folders(
    two_folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = two_folders
    run(audit, monkeypatch, "--a", one, "--b", two, "--json", tmp_path / "pairs.json")
    assert "[a]/2.png" in capsys.readouterr().out
    written = json.loads((tmp_path / "pairs.json").read_text())
    (pair,) = written["near_duplicates"]
    assert (pair["a"], pair["b"], pair["b_is"]) == ("[a]/2.png", "0.png", "mirrored")
    run(audit, monkeypatch, "--a", one)
    assert "no near duplicates" in " ".join(capsys.readouterr().out.split())  # long paths wrap


def test_image_sets_stored_by_datasets(two_folders: tuple[Path, Path], tmp_path: Path) -> None:
    stored = datasets.Dataset.from_dict(
        {"image": [str(path) for path in sorted(two_folders[0].rglob("*.png"))], "other": [1, 2, 3]}
    ).cast_column("image", datasets.Image())
    stored.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": stored, "test": stored}).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "parquet").mkdir()
    stored.to_parquet(str(tmp_path / "parquet" / "x.parquet"))
    for name, names in (
        ("saved", ["row 0", "row 1", "row 2"]),
        ("parquet", ["row 0", "row 1", "row 2"]),
        ("dict", [*(f"train {row}" for row in range(3)), *(f"test {row}" for row in range(3))]),
    ):
        found, images = audit.read_image_set(tmp_path / name)
        assert found == names
        assert len(audit.near_duplicates(two_folders[0].rglob("2.png"), images)) == len(names) // 3
    datasets.Dataset.from_dict({"other": [1]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="has the columns other"):
        audit.read_image_set(tmp_path / "none")


@pytest.mark.parametrize("module", [audit, explore])
def test_commands_say_what_is_wrong(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"error: .*missing: no such folder"):
        run(module, monkeypatch, "--data_dir", tmp_path / "missing")


def test_audit_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"error: .*missing: there is no such folder"):
        run(audit, monkeypatch, "--a", tmp_path / "missing")
    with pytest.raises(SystemExit, match="holds no images"):
        run(audit, monkeypatch, "--a", tmp_path)
    with pytest.raises(SystemExit):
        run(audit, monkeypatch, "--data_dir", tmp_path, "--b", tmp_path)
    with pytest.raises(SystemExit):
        run(audit, monkeypatch, "--data_dir", tmp_path, "--config", "by_hand")
    assert "--b needs --a" in (printed := capsys.readouterr().err) and "patient_groups" in printed


def test_page_stands_alone(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    pictures = [value for value in parsed.loaded if value.startswith("data:image/jpeg;base64,")]
    assert len(pictures) >= 3 * 6 + 2 * 4
    assert all(value.startswith("#") for value in parsed.loaded if value not in pictures)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)
    assert len(page) < 5_000_000


def test_page_tells_what_must_be_told(page: str, slices: Slices) -> None:
    for text in ("CC BY 4.0", "10.6084/m9.figshare.1512427", "e0140381", "e0157112", "not for clinical use"):
        assert text in page
    assert f"<b>{len(slices.numbers)}</b>" in page and f"<b>{len(set(slices.groups))}</b>" in page
    assert "re-encoded &lt;pictures&gt;" in page
    assert "not only, the published patients" in page  # phantoms must not pass for the published data
    assert "near duplicate" in page and "patient_groups" in page


def test_page_follows_light_and_dark(page: str) -> None:
    charts = re.findall(r'<svg viewBox="[^"]*" role="img" aria-label="[A-Z].*?</svg>', page, flags=re.DOTALL)
    assert len(charts) == 5
    assert all("var(--ink)" in chart and "#1a1a1a" not in chart.lower() for chart in charts)


def test_samples_are_of_their_class_and_plane_and_of_different_patients(slices: Slices) -> None:
    with_planes = np.arange(60) % 3
    column = datasets.ClassLabel(names=["axial", "coronal", "sagittal"])
    plain = slices.dataset.remove_columns([name for name in ["plane"] if name in slices.dataset.column_names])
    planar = plain.add_column("plane", with_planes.tolist(), feature=column)
    for dataset, planes in ((plain, [None]), (planar, column.names)):
        changed = Slices(dataset, slices.numbers, slices.pids, slices.groups, slices.labels, slices.small)
        rows = explore.samples(changed)
        assert [row["label"] for row in rows] == ["meningioma", "glioma", "pituitary"]
        assert sum(cell["slices"] for row in rows for cell in row["cells"]) == 60
        for row in rows:
            assert [cell["plane"] for cell in row["cells"]] == planes
            for number, cell in enumerate(row["cells"]):
                assert {picture.label for picture in cell["pictures"]} <= {row["label"]}
                pids = [picture.pid for picture in cell["pictures"]]
                assert len(pids) == len(set(pids))
                if cell["plane"]:
                    assert all((picture.number - 1) % 3 == number for picture in cell["pictures"])


def test_nearest_pairs_are_the_closest_across_the_split(slices: Slices) -> None:
    folds = [audit_split(slices, "patient_groups", fold) for fold in range(5)]
    pairs = explore.nearest_pairs(slices, folds)
    correlations = [pair["correlation"] for pair in pairs]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] == pytest.approx(max(audit.correlation.max() for audit in folds))
    assert not any(pair["same_group"] for pair in pairs)
    assert {pair["match_split"] for pair in pairs} <= {"train", "validation"}


def test_explore_command_wants_an_html_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"ends in \.html"):
        run(explore, monkeypatch, "--data_dir", tmp_path, "--out", tmp_path / "sheet.pdf")
