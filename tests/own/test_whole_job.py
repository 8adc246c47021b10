"""The whole job on a set of one's own, and what its options and texts are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data.own.loading import load_own_data
from hf_kdmri.hub.own_data_card import OwnDataFacts, count_lines, name_classes, own_split_text
from hf_kdmri.training.options import OptionError, parse_options
from tests.own.sets import CLASSES, TEXT, save_folders, save_parquet
from tests.test_train_kd import train_kd


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
