"""Data sets that a user brings: what is read, how it is split, what is refused, and the whole job on one."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data.own_columns import OwnDataError
from hf_kdmri.data.own_data import OwnData, load_own_data
from hf_kdmri.data.pictures import PictureError, decode_picture, to_8_bit
from hf_kdmri.data.views import prepare_views
from hf_kdmri.hub.own_data_card import OwnDataFacts, count_lines, name_classes, own_split_text
from hf_kdmri.training.options import OptionError, parse_options
from tests.test_train_kd import train_kd

CLASSES = ["<script>", 'a: "b" | c', "glioma", "no tumour"]
TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture whose colours tell its class, `number % 4`."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., number % 3] += 60 * (number % 4 // 2 + 1)
    return Image.fromarray(pixels).convert(mode)


def save_folders(root: Path, per_class: int = 10, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    for number in range(per_class * len(names)):
        folder = root / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    return root


def save_parquet(root: Path, splits: dict[str, dict[str, list]], **features: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    types = datasets.Features({"image": datasets.Image(), **features})
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        start = 1000 * list(splits).index(split)
        rows = {"image": [picture(start + i, size=(8, 8)) for i in range(count)], **columns}
        rows = {name: rows[name] for name in types}
        datasets.Dataset.from_dict(rows, features=types).to_parquet(str(root / f"{split}.parquet"))
    return root


def load(root: Path, **options: object) -> OwnData:
    return load_own_data(str(root), cache_dir=root.parent / "cache", **options)  # type: ignore[arg-type]


def keys(split: datasets.Dataset) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in split["image"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folders(tmp_path_factory.mktemp("folders") / "set")


class TestSplits:
    def test_groups_are_pooled_and_never_divided(self, tmp_path: Path):
        columns = {
            split: {"label": [n // 4 % 4 for n in range(80)], "who": [start + n // 4 for n in range(80)]}
            for split, start in (("train", 0), ("test", 10))  # persons 10 to 19 stand on both published sides
        }
        root = save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=CLASSES), who=NUMBER)
        tested: list[str] = []
        for fold in range(5):
            data = load(root, group_column="who", fold=fold)
            people = {name: set(split["patient_group"]) for name, split in data.splits.items()}
            assert not people["train"] & people["test"] | people["train"] & people["validation"]
            assert not people["validation"] & people["test"]
            assert sum(map(len, data.splits.values())) == 160
            assert (data.split, data.fold, data.one_class_per_group) == ("by who", fold, False)
            assert not any("group_column" in warning for warning in data.warnings)
            tested += people["test"]
        assert Counter(tested) == Counter(str(n) for n in range(30))  # each person is tested in one fold

    def test_own_splits_are_kept_under_any_usual_name(self, tmp_path: Path):
        columns = {name: {"label": [n % 2 for n in range(size)]} for name, size in (("train", 20), ("val", 6))}
        columns["test"] = {"label": [0, 1]}
        data = load(save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=["x", "y"])))
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "validation": 6, "test": 2}
        assert (data.split, data.fold, data.drawn) == ("as published", None, ())
        (warning,) = data.warnings
        assert "no --group_column" in warning
        with pytest.raises(OwnDataError, match="brings its own train, validation and test"):
            load(tmp_path / "set", fold=2)

    @pytest.mark.parametrize(("published", "missing"), [("test", "validation"), ("validation", "test")])
    def test_a_missing_split_is_drawn_from_training(self, tmp_path: Path, published: str, missing: str):
        columns = {"train": {"label": ["x", "y"] * 40}, published: {"label": ["x", "y"] * 5}}
        data = load(save_parquet(tmp_path / "set", columns, label=TEXT))
        assert len(data.splits[published]) == 10
        assert len(data.splits[missing]) == {"validation": 10, "test": 16}[missing]
        assert Counter(data.splits[missing]["label"]).keys() == {0, 1}
        assert data.drawn == (missing,) and data.fold == 0
        assert not set(keys(data.splits[missing])) & set(keys(data.splits["train"]))

    def test_a_set_of_one_split_is_dealt_by_content_not_by_order(self, folders: Path, tmp_path: Path):
        data = load(folders)
        assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [28, 4, 8]
        for split in data.splits.values():
            assert len(set(Counter(split["label"]).values())) == 1  # as many of each class
        for number, path in enumerate(sorted(folders.rglob("*.png"), reverse=True)):
            target = tmp_path / "renamed" / path.parent.name / f"{number:03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        renamed = load(tmp_path / "renamed")
        assert set(keys(renamed.splits["test"])) == set(keys(data.splits["test"]))
        assert set(keys(load(folders, seed=1).splits["test"])) != set(keys(data.splits["test"]))

    def test_every_image_keeps_a_number_of_its_own_in_all_splits_and_folds(self, folders: Path):
        by_number: dict[int, bytes] = {}
        for options in (dict(), dict(seed=5), dict(fold=3)):
            splits = load(folders, **options).splits
            seen = [number for split in splits.values() for number in split["slice"]]
            assert sorted(seen) == list(range(40))
            for split in splits.values():
                for number, key in zip(split["slice"], keys(split), strict=True):
                    assert by_number.setdefault(number, key) == key

    def test_equal_files_stay_together_and_published_twins_are_told(self, tmp_path: Path):
        root = save_folders(tmp_path / "one")
        for path in list(root.rglob("*.png")):
            path.with_name(f"copy_of_{path.name}").write_bytes(path.read_bytes())
        data = load(root)
        assert not set(keys(data.splits["train"])) & set(keys(data.splits["test"]))
        both = tmp_path / "both"
        for split in ("train", "validation", "test"):
            save_folders(both / split, per_class=2)
        assert any("8 of 8 test images are, byte for byte, in the training split" in w for w in load(both).warnings)

    def test_unlabelled_and_foreign_splits_are_left_out_aloud(self, tmp_path: Path):
        columns = {name: {"label": [0, 1] * 20} for name in ("train", "validation")}
        columns |= {"test": {"label": [-1] * 4}}
        data = load(save_parquet(tmp_path / "set", columns, label=datasets.ClassLabel(names=["x", "y", "z"])))
        assert "split test has no labels and is not used" in data.notes
        assert "no image has the class 'z'; left out" in data.notes
        assert data.drawn == ("test",)
        assert data.splits["train"].features["label"].names == ["x", "y"]


class TestColumns:
    @pytest.mark.parametrize(
        ("feature", "values", "names"),
        [
            (NUMBER, [10, 2] * 20, ["2", "10"]),
            (TEXT, ["b", "a"] * 20, ["a", "b"]),
            (datasets.Value("bool"), [True, False] * 20, ["False", "True"]),
            (datasets.ClassLabel(names=["z", "a"]), [0, 1] * 20, ["z", "a"]),
        ],
    )
    def test_labels_of_any_plain_type(self, tmp_path: Path, feature, values: list, names: list[str]):
        data = load(save_parquet(tmp_path / "set", {"train": {"kind": values}}, kind=feature), label_column="kind")
        assert data.splits["train"].features["label"].names == names
        shown = {names[label] for split in data.splits.values() for label in split["label"]}
        assert shown == set(names)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label_column": "labl"}, r"columns image, label, who, score; did you mean --label_column label\?"),
            ({"image_column": "picture"}, r"did you mean --image_column image\?"),
            ({"group_column": "wo"}, r"did you mean --group_column who\?"),
            ({"group_column": "label"}, "both name the column 'label'"),
            ({"group_column": "who"}, "empty in 1 of 40 rows of train, the first is row 3"),
            ({"group_column": "score"}, "holds float64; expected text or whole numbers"),
            ({"label_column": "score"}, "holds float64; expected one class per image"),
            ({"image_column": "score"}, "holds float64; expected datasets.Image"),
            ({"image_column": "who"}, "holds text, and its first value 'p0' is no file"),
            ({"fold": 7}, "fold is 7"),
        ],
    )
    def test_refusals_name_the_way_out(self, tmp_path: Path, options: dict, message: str):
        who = [f"p{n // 2}" if n != 3 else "" for n in range(40)]
        train: dict[str, list] = {"label": [n % 4 for n in range(40)], "who": who, "score": [0.5] * 40}
        label = datasets.ClassLabel(names=CLASSES)
        root = save_parquet(tmp_path / "set", {"train": train}, label=label, who=TEXT, score=datasets.Value("float64"))
        with pytest.raises(ValueError, match=message):
            load(root, **options)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0] * 10 + [-1] * 2, "2 of 12 images of split train have no label, the first of them in row 10"),
            ([0] * 12, "all images have the class '0'; two classes at least"),
            ([-1] * 12, "no split has labels"),
        ],
    )
    def test_labels_that_cannot_be_learned(self, tmp_path: Path, labels: list[int], message: str):
        with pytest.raises(OwnDataError, match=message):
            load(save_parquet(tmp_path / "set", {"train": {"label": labels}}, label=NUMBER))

    def test_a_class_without_training_images_is_named(self, tmp_path: Path):
        columns = {"train": {"label": ["x", "y"] * 8}, "validation": {"label": ["x"]}, "test": {"label": ["y", "rare"]}}
        with pytest.raises(OwnDataError, match=r"training split has no image of 'rare' \(1 in validation and test\)"):
            load(save_parquet(tmp_path / "set", columns, label=TEXT))

    def test_scarce_and_absent_classes_are_noted(self, tmp_path: Path):
        columns = {
            "train": {"label": ["x"] * 8 + ["few"] * 2},
            "validation": {"label": ["x"]},
            "test": {"label": ["x"]},
        }
        notes = " ".join(load(save_parquet(tmp_path / "set", columns, label=TEXT)).notes)
        assert "fewer than 5 training images: 'few'" in notes and "no test image of 'few'" in notes

    def test_a_table_of_paths_is_read(self, tmp_path: Path):
        root = save_folders(tmp_path / "set" / "pictures")
        paths = sorted(root.rglob("*.png"))
        rows = "".join(f"{path.relative_to(root.parent)},{path.parent.name}\n" for path in paths)
        (root.parent / "table").mkdir()
        types = datasets.Features({"file": TEXT, "label": TEXT})
        columns = dict(zip(types, zip(*(row.split(",") for row in rows.splitlines()), strict=True), strict=True))
        datasets.Dataset.from_dict(columns, features=types).to_parquet(str(root.parent / "table" / "train.parquet"))
        for path in paths:
            target = root.parent / "table" / path.relative_to(root.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        # Files of two kinds in one folder: a README's YAML says which hold the rows.
        head = "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
        (root.parent / "table" / "README.md").write_text(head)
        data = load(root.parent / "table", image_column="file")
        assert sum(map(len, data.splits.values())) == 40 and data.splits["train"][0]["image"].size == (24, 20)

    def test_class_folders_with_a_table_need_the_label_in_it(self, tmp_path: Path):
        root = save_folders(tmp_path / "set")
        paths = sorted(root.rglob("*.png"))
        rows = [f"{path.relative_to(root)},{path.parent.name},p{n // 2}" for n, path in enumerate(paths)]
        (root / "metadata.csv").write_text("\n".join(["file_name,label,patient", *rows]))
        data = load(root, group_column="patient")
        people = {name: set(split["patient_group"]) for name, split in data.splits.items()}
        assert not people["train"] & people["test"] and sum(map(len, data.splits.values())) == 40
        assert data.one_class_per_group and data.splits["test"].features["label"].names == ["a", "b", "c", "d"]
        rows = [",".join(np.array(row.split(","))[[0, 2]]) for row in rows]
        (root / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
        with pytest.raises(OwnDataError, match=r"lose theirs: add a column label to that file"):
            load(root, group_column="patient")

    def test_names_that_lead_nowhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(OwnDataError, match=r"cannot load the data set 'no/such' \(there is no folder of that name"):
            load_own_data("no/such", cache_dir="cache")
        with pytest.raises(OwnDataError, match="is a reader of the datasets library, not a set"):
            load_own_data("imagefolder", cache_dir="cache")
        (tmp_path / "empty").mkdir()
        with pytest.raises(OwnDataError, match="doesn't contain any data files"):
            load_own_data("empty", cache_dir="cache")

    def test_a_folder_called_like_a_reader_is_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        save_folders(tmp_path / "imagefolder")
        save_folders(tmp_path / "other", names=("e", "f"))
        monkeypatch.chdir(tmp_path)
        data = load_own_data("imagefolder", cache_dir="cache")
        assert data.splits["train"].features["label"].names == ["a", "b", "c", "d"] and data.hub_id is None


class TestPictures:
    def test_one_colour_picture_among_grey_ones_makes_three_channels(self, tmp_path: Path):
        images = [picture(n, "L") for n in range(5)] + [picture(5)]
        features = datasets.Features({"image": datasets.Image(), "label": NUMBER})
        dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
        views = prepare_views(dataset, 16)
        assert views.view(0).shape == (3, 16, 16) and (views.view(0)[0] == views.view(0)[2]).all()
        assert (views.view(5)[0] != views.view(5)[2]).any()
        assert prepare_views(dataset.select(range(5)), 16).view(0).shape == (1, 16, 16)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    def test_8_bit_modes_are_what_pipelines_see(self, mode: str, tmp_path: Path):
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        picture(3, mode).save(path)
        seen = decode_picture(path.read_bytes())
        assert seen.mode in ("L", "RGB")
        np.testing.assert_array_equal(np.asarray(seen.convert("RGB")), np.asarray(Image.open(path).convert("RGB")))

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_more_than_8_bits_are_windowed_and_not_saturated(self, dtype: type[np.number], tmp_path: Path):
        ramp = np.linspace(1000, 30000, 64 * 64).reshape(64, 64).astype(dtype)
        Image.fromarray(ramp).save(tmp_path / "x.tif")
        pixels = np.asarray(decode_picture((tmp_path / "x.tif").read_bytes())).astype(int)
        assert pixels.dtype.kind == "i" and pixels.min() == 0 and pixels.max() == 255
        assert (np.diff(pixels.ravel()) >= 0).all() and len(np.unique(pixels)) == 256

    def test_orientation_of_the_camera_is_applied(self, tmp_path: Path):
        image = picture(1, size=(30, 10))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        image.save(tmp_path / "x.png", exif=exif)
        assert decode_picture((tmp_path / "x.png").read_bytes()).size == (10, 30)

    def test_pictures_that_cannot_be_used_say_why(self, tmp_path: Path):
        picture(0).save(tmp_path / "a.gif", save_all=True, append_images=[picture(1), picture(2)])
        with pytest.raises(PictureError, match="holds 3 frames, expected one"):
            decode_picture((tmp_path / "a.gif").read_bytes())
        with pytest.raises(PictureError, match=r"cannot be read as a picture \(cannot identify image file\); save it"):
            decode_picture(b"no picture")
        with pytest.raises(PictureError, match="not finite"):
            to_8_bit(Image.fromarray(np.full((4, 4), np.nan, np.float32)))

    def test_a_set_with_damaged_files_names_them_before_anything_trains(self, tmp_path: Path):
        root = save_folders(tmp_path / "set")
        whole = (root / "a" / "0.png").read_bytes()
        (root / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            PictureError, match=r"1 of 40 images cannot be used: train row 0 \(.*0\.png\) cannot be read"
        ):
            load(root)

    def test_wide_images_are_counted(self, tmp_path: Path):
        root = save_folders(tmp_path / "set")
        deep = np.random.default_rng(0).integers(0, 4000, (20, 24), dtype=np.uint16)
        Image.fromarray(deep).save(root / "a" / "0.png")
        data = load(root)
        assert data.wide_images == 1 and not data.grey
        assert any("1 image of more than 8 bits is windowed" in note for note in data.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset_name", "x", "--data_dir", "y"],
            r"data_dir \('y'\) is for the Figshare slices; leave data_dir out",
        ),
        (["--dataset_name", "x", "--phantom_slices", "9"], r"leave phantom_slices out, also of the file given as"),
        (["--dataset_name", "x", "--split", "cvind"], r"split \('cvind'\) is for the Figshare slices"),
        (["--group_column", "who"], r"group_column is 'who', but no data set is named; give --dataset_name"),
        (["--dataset_name", " "], r"dataset_name is empty"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], message: str):
    with pytest.raises(OptionError, match=message):
        parse_options(arguments)


def test_card_texts_fit_many_classes_and_odd_names():
    labels = [f"class {n}" for n in range(40)]
    facts = OwnDataFacts(name="My: set/1", counts={"train": dict.fromkeys(labels, 25)})
    assert facts.slug == "my--set-1"
    assert count_lines(facts, labels) == (["Split", "Images"], [["train", "1,000"]])
    assert name_classes(labels) == "40 classes (class 0, class 1, class 2, class 3, class 4, …)"
    assert "a\\|b" in own_split_text(OwnDataFacts(name="x", counts={}, group_column="a|b"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The whole job on four classes of forty people, from Parquet."""
    folder = tmp_path_factory.mktemp("own")
    columns = {
        "diagnosis": [CLASSES[n % 4] for n in range(81)],
        "person": [f"p{n // 8}-{n % 4}" for n in range(81)],
    }
    save_parquet(folder / "set", {"train": columns}, diagnosis=TEXT, person=TEXT)
    done = train_kd(
        *("--dataset_name", str(folder / "set"), "--label_column", "diagnosis", "--group_column", "person"),
        *("--teacher_architecture", "test_resnet", "--student_architecture", "test_vit", "--num_train_epochs", "1"),
        *("--teacher_image_size", "64", "--student_image_size", "64", "--geometry_grid", "2", "--seed", "3"),
        *("--cache_dir", str(folder / "cache"), "--output_dir", str(folder / "run")),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "run", done.stdout, done.stderr


@pytest.mark.slow
class TestWholeJob:
    def test_metrics_are_of_four_classes_and_of_people(self, finished):
        metrics = json.loads((finished[0] / "metrics.json").read_text())
        run = metrics["run"]
        assert (run["source"], run["split"], run["fold"], run["classes"]) == ("set", "by person", 0, CLASSES)
        assert sum(run["slices"].values()) == 81 and sum(run["patient_groups"].values()) == 41
        for row in metrics["models"].values():
            assert list(row["recall_per_class"]) == CLASSES
            assert row["patients"]["n"] == run["patient_groups"]["test"]
        assert json.loads((finished[0] / "student" / "config.json").read_text())["label_names"] == CLASSES

    def test_what_is_said(self, finished):
        _, said, errors = finished
        assert "[1/5] Data: set, split by person, fold 0: 4 classes; train" in said
        assert "WARNING" not in said + errors
        assert "n (images)" in " ".join(said.split()) or "(images)" in said

    def test_the_card_speaks_of_this_set_alone(self, finished):
        path = finished[0] / "student" / "README.md"
        text = path.read_text(encoding="utf-8")
        for foreign in (
            "figshare",
            "Figshare",
            "CC BY",
            "Cheng",
            "meningioma",
            "Kaggle",
            "T1",
            "tumour name",
            "apache",
        ):
            assert foreign not in text, foreign
        for expected in (
            'tells apart &lt;script&gt;, a: "b" \\| c, glioma or no tumour',
            "Dealt by the column person",
            "licence and origin",
            "one value of the column person",
            "Research use only. Not a medical device.",
        ):
            assert expected in text, expected
        outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.S | re.M)
        assert "<script>" not in outside and str(finished[0].parent) not in text
        head = yaml.safe_load(text.split("---")[1])
        assert head["model-index"][0]["results"][0]["dataset"]["config"] == "by person"
        assert "license" not in head and "datasets" not in head
        assert ModelCard.load(path).data.model_name == "kdmri-test_vit"
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert all(len(re.findall(r"(?<!\\)\|", line)) in (6, 7, 8, 9) for line in tables)

    def test_the_saved_student_is_what_was_measured(self, finished):
        from transformers import pipeline

        run = finished[0]
        data = load_own_data(
            str(run.parent / "set"),
            label_column="diagnosis",
            group_column="person",
            cache_dir=run.parent / "cache",
            seed=3,
        )
        test = data.splits["test"]
        classify = pipeline("image-classification", model=str(run / "student"))
        guesses = [scores[0]["label"] for scores in classify(test["image"][:])]
        accuracy = np.mean([guess == CLASSES[label] for guess, label in zip(guesses, test["label"], strict=True)])
        metrics = json.loads((run / "metrics.json").read_text())
        assert accuracy == pytest.approx(metrics["models"]["student"]["accuracy"])


@pytest.mark.slow
def test_folders_without_people_warn_once_and_measure_images_alone(folders: Path, tmp_path: Path):
    teacher = TeacherForImageClassification.from_timm("test_resnet", labels=["d", "c", "b", "a"], image_size=64)
    teacher.save_pretrained(tmp_path / "teacher")
    done = train_kd(
        *("--dataset_name", str(folders), "--teacher", str(tmp_path / "teacher"), "--no_baseline"),
        *("--student_architecture", "mobilenetv4_conv_small", "--student_image_size", "64", "--num_train_epochs", "1"),
        *("--per_device_train_batch_size", "9", "--geometry_grid", "2"),  # 28 images: a last batch of one
        *("--cache_dir", str(folders.parent / "cache"), "--output_dir", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stderr.count("WARNING: no --group_column was given") == 1
    assert "is left out" in done.stdout
    assert "Patient" not in done.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run"]["slices"] == {"train": 27, "validation": 4, "test": 8}
    assert "patient_groups" not in metrics["run"] and "patients" not in metrics["models"]["student"]
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "images of one person may be in training and in test" in card
    assert "atient accuracy" not in card and "Over patients" not in card


@pytest.mark.slow
def test_folds_are_refused_where_the_set_brings_its_own_test(tmp_path: Path):
    for split in ("train", "test"):
        save_folders(tmp_path / "set" / split)
    done = train_kd(
        *("--dataset_name", str(tmp_path / "set"), "--folds", "all", "--output_dir", str(tmp_path / "run")),
        *("--cache_dir", str(tmp_path / "cache")),
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "the set brings its own; give --group_column" in done.stderr
