"""The whole job by its command: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.cli import app
from hf_kdmri.evaluation.statistics.predictions import Predictions
from hf_kdmri.hub.card_rules import check_card
from hf_kdmri.training.job import report_again
from hf_kdmri.training.report.student_card import write_card_of_baseline
from tests.conftest import LABELS, ROOT

TINY = {
    "phantom_slices": 80,
    "teacher_architecture": "test_resnet",
    "teacher_image_size": 64,
    "student_architecture": "test_vit",
    "student_image_size": 32,
    "num_train_epochs": 2,
    "teacher_num_train_epochs": 3,
    "geometry_weight": 1.0,
    "geometry_grid": 2,
    "seed": 7,
}


def train_kd(*arguments: str, launcher: tuple[str, ...] = (), cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(ROOT / "train_kd.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=500)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("job")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--quiet")
    done = train_kd("--config", str(config), "--output_dir", str(folder / "run"), launcher=launcher)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "run", done


@pytest.mark.slow
class TestFinishedRun:
    def test_every_model_is_a_loadable_folder(self, finished):
        run, _ = finished
        assert TeacherForImageClassification.from_pretrained(run / "teacher").image_size == 64
        for stage in ("baseline", "student"):
            assert StudentForImageClassification.from_pretrained(run / stage).labels == LABELS

    def test_metrics_speak_of_all_three(self, finished):
        metrics = json.loads((finished[0] / "metrics.json").read_text())
        assert list(metrics["models"]) == ["teacher", "baseline", "student"]
        for row in metrics["models"].values():
            assert {"accuracy", "macro_f1", "balanced_accuracy", "recall_per_class", "confusion_matrix"} <= row.keys()
            assert row["n"] == metrics["run"]["slices"]["test"] == sum(map(sum, row["confusion_matrix"]))
            assert row["patients"]["n"] == metrics["run"]["patient_groups"]["test"]
            assert row["parameters"] > 0 and row["ms_per_image"] > 0
        assert metrics["run"]["phantom"] and metrics["run"]["source"] == "generated phantoms"
        assert "tiny.yaml" in metrics["run"]["command"]

    def test_metrics_are_those_of_the_saved_student(self, finished):
        """What is reported is what a stranger's pipeline computes from the folder."""
        from transformers import pipeline

        from hf_kdmri.data.loading import load_slices

        run, _ = finished
        splits = load_slices(data_dir=run / "phantoms", cache_dir=run / "cache", seed=7)
        classify = pipeline("image-classification", model=str(run / "student"))
        guesses = [scores[0]["label"] for scores in classify(splits["test"]["image"][:])]
        truth = [LABELS[label] for label in splits["test"]["label"]]
        accuracy = sum(a == b for a, b in zip(guesses, truth, strict=True)) / len(truth)
        metrics = json.loads((run / "metrics.json").read_text())
        assert accuracy == pytest.approx(metrics["models"]["student"]["accuracy"])

    def test_history_has_the_curves_of_every_stage(self, finished):
        rows = [json.loads(line) for line in (finished[0] / "history.jsonl").read_text().splitlines()]
        for stage, epochs in (("teacher", 3), ("baseline", 2), ("student", 2)):
            mine = [row for row in rows if row["stage"] == stage]
            assert [row["epoch"] for row in mine if "loss" in row] == list(range(1, epochs + 1))
            assert [row["epoch"] for row in mine if "eval_accuracy" in row] == list(range(1, epochs + 1))
        distilled = [row for row in rows if row["stage"] == "student" and "loss" in row]
        assert all({"loss_ce", "loss_logit", "loss_geometry", "train_accuracy"} <= row.keys() for row in distilled)

    def test_figures_card_and_configuration_are_there(self, finished):
        run, done = finished
        for name in ("training_curves", "predictions", "comparison"):
            assert (run / "figures" / f"{name}.png").stat().st_size > 10_000
            assert (run / "figures" / f"{name}.svg").is_file()
            assert f"{name}.png" in done.stdout
        card = (run / "student" / "README.md").read_text()
        assert "phantom" in card
        assert "tiny.yaml" in card and str(run.parent) not in card  # the command, but nobody's folders
        for heading in ("Against teacher and baseline", "Size and speed", "Calibration", "Where the model looks"):
            assert f"### {heading}\n\n" in card
        assert "Not measured in this run. Expect losses" in card  # robustness
        resolved = yaml.safe_load((run / "config.yaml").read_text())
        assert TINY.items() <= resolved.items()

    def test_predictions_and_report_are_there(self, finished):
        run, _ = finished
        metrics = json.loads((run / "metrics.json").read_text())
        predictions = Predictions.read(run / "predictions.parquet")
        assert len(predictions) == metrics["run"]["slices"]["test"]
        for stage, row in metrics["models"].items():
            assert (predictions.predicted(stage) == predictions.labels).mean() == pytest.approx(row["accuracy"])
            assert row["flops"] > 1e6 and row["megabytes"] > 0.5
        summary = metrics["evaluation"]["summary"]
        assert summary["over_slices"]["models"]["student"]["accuracy"]["value"] == pytest.approx(
            metrics["models"]["student"]["accuracy"]
        )
        assert metrics["evaluation"]["saliency"]["student"]["classes"]["all classes"]["n"] >= 0
        assert metrics["evaluation"]["robustness"] is None
        page = (run / "report.html").read_text()
        for heading in (
            "Results",
            "Training",
            "Calibration and abstention",
            "Where the models look",
            "How it was made",
        ):
            assert f">{heading}</h2>" in page
        assert "generated phantoms" in page and "Research use only" in page
        assert (run / "tables" / "headline.md").read_text().startswith("| Model |")

    def test_the_report_can_be_made_again_from_the_folder(self, finished):
        run, _ = finished
        before = json.loads((run / "metrics.json").read_text())
        (run / "report.html").unlink()
        assert report_again(run) == run / "report.html"
        assert (run / "report.html").is_file()
        assert json.loads((run / "metrics.json").read_text()) == before

    def test_the_student_alone_can_be_packed_instead(self, finished, tmp_path):
        run = shutil.copytree(finished[0], tmp_path / "run")
        done = CliRunner().invoke(app, ["pack", str(run), "--out", str(tmp_path / "packed"), "--model", "baseline"])
        assert done.exit_code == 0, done.stderr
        weights, packed = (
            load_file(folder / "model.safetensors") for folder in (run / "baseline", tmp_path / "packed")
        )
        assert all(torch.equal(weights[name], packed[name]) for name in weights)
        check_card(tmp_path / "packed")
        card = (tmp_path / "packed" / "README.md").read_text()
        assert "It was trained without a teacher" in card and "Hinton" not in card.split("## Training")[1]
        made = json.loads((tmp_path / "packed" / "config.json").read_text())["distillation"]
        assert made["teacher"] is None and "temperature" not in made["losses"] and made["slices"]["train"] > 0
        assert not (finished[0] / "baseline" / "README.md").exists()
        assert (run / "figures" / "reliability.png").is_file()  # of the distilled student
        assert not (tmp_path / "packed" / "figures" / "reliability.png").exists()

    def test_a_card_that_was_edited_stays(self, finished, tmp_path):
        run = shutil.copytree(finished[0], tmp_path / "run")
        written = write_card_of_baseline(run)
        written.write_text(written.read_text(encoding="utf-8") + "\nA sentence of mine.\n", encoding="utf-8")
        assert write_card_of_baseline(run).read_text(encoding="utf-8").endswith("A sentence of mine.\n")

    def test_it_says_each_stage_and_ends_with_the_table(self, finished):
        text = finished[1].stdout
        for number in range(1, 6):
            assert f"[{number}/5]" in text
        assert "epoch 2/2   train: cross-entropy" in text + finished[1].stderr
        assert "{'loss'" not in text + finished[1].stderr
        for model in ("Teacher", "Student alone", "Distilled student"):
            assert model in text
        assert str(finished[0] / "student") in text

    def test_no_teacher_and_no_pickle_travel_with_the_student(self, finished):
        assert sorted(path.name for path in (finished[0] / "student").iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
            "samples",
        ]
        assert not list(finished[0].rglob("*.bin"))

    def test_a_finished_run_is_left_alone(self, finished):
        run, _ = finished
        before = (run / "student" / "model.safetensors").stat().st_mtime_ns
        again = train_kd("--config", str(run / "config.yaml"))
        assert again.returncode == 0 and "finished; nothing to do" in again.stdout
        assert (run / "student" / "model.safetensors").stat().st_mtime_ns == before

    def test_another_configuration_is_refused_there(self, finished):
        run, _ = finished
        other = train_kd("--config", str(run / "config.yaml"), "--temperature", "2")
        assert other.returncode != 0 and "temperature: 4.0 there, 2.0 now" in other.stderr

    def test_a_teacher_can_be_given_and_the_baseline_left_out(self, finished, tmp_path: Path):
        run, _ = finished
        done = train_kd(
            *("--config", str(run / "config.yaml"), "--output_dir", str(tmp_path / "second")),
            *("--teacher", str(run / "teacher"), "--no_baseline", "--num_train_epochs", "1"),
            *("--max_train_samples", "20", "--max_eval_samples", "6"),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
        assert list(metrics["models"]) == ["teacher", "student"]
        assert metrics["run"]["slices"] == {"train": 20, "validation": 6, "test": 6}
        rows = [json.loads(line) for line in (tmp_path / "second" / "history.jsonl").read_text().splitlines()]
        assert {row["stage"] for row in rows} == {"student"} and max(row["epoch"] for row in rows) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fold", "9"], "fold is 9"),
        (["--data_dri", "x"], "did you mean --data_dir?"),
        (["--data_dir", "EMPTY"], "make demo"),
        (["--phantom_slices", "40", "--student_architecture", "vit_teeny"], "the nearest names are"),
    ],
)
@pytest.mark.slow
def test_what_a_user_can_mend_is_said_in_one_line(tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "EMPTY").mkdir()
    done = train_kd("--output_dir", "run", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train_kd.py: error: ") and message in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused_before_training(tmp_path: Path):
    TeacherForImageClassification.from_timm("test_resnet", labels=["cat", "dog", "bird"]).save_pretrained(
        tmp_path / "cats"
    )
    done = train_kd("--phantom_slices", "40", "--teacher", "cats", "--output_dir", "run", cwd=tmp_path)
    assert "the teacher's classes ['cat', 'dog', 'bird'] are not the student's" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_do_the_whole_job(tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "phantom_slices": 60, "per_device_train_batch_size": 8}))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29527")
    done = train_kd(
        *("--config", str(config), "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"), launcher=launcher
    )
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["models"]["student"]["n"] == metrics["run"]["slices"]["test"]
    assert done.stdout.count("[5/5] Testing") == 1  # one process speaks


@pytest.mark.slow
def test_without_a_word_from_the_teacher_the_distilled_student_is_the_student_alone(tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    silent = {"logit_weight": 0.0, "geometry_weight": 0.0, "num_train_epochs": 1, "teacher_num_train_epochs": 1}
    config.write_text(yaml.safe_dump(TINY | silent))
    done = train_kd("--config", str(config), "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    alone, taught = (load_file(tmp_path / "run" / stage / "model.safetensors") for stage in ("baseline", "student"))
    assert alone.keys() == taught.keys()
    assert all(torch.equal(alone[name], taught[name]) for name in alone)


@pytest.mark.slow
def test_a_teacher_alone_then_two_students_from_one_cache(tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "num_train_epochs": 2, "baseline": False}))
    shared = ["--config", str(config), "--cache_dir", str(tmp_path / "cache")]
    done = train_kd(*shared, "--teacher_only", "--output_dir", str(tmp_path / "teacher"))
    assert done.returncode == 0, done.stderr[-4000:]
    teacher = tmp_path / "teacher" / "teacher"
    assert f"Teacher: {teacher}" in done.stdout and not (tmp_path / "teacher" / "student").exists()
    built = set()
    for name, option in (("wrong", "depths=3"), ("first", "depth=4"), ("second", "depth=3")):
        done = train_kd(
            *shared, "--teacher", str(teacher), "--teacher_cache", str(tmp_path / "said"),
            "--student_model_args", option, "--output_dir", str(tmp_path / name),
        )  # fmt: skip
        if name == "wrong":  # this network has no such argument
            assert done.returncode != 0 and "test_vit" in done.stderr and "depths" in done.stderr, done.stderr[-2000:]
            continue
        assert done.returncode == 0, done.stderr[-4000:]
        assert ("Teacher cache: " in done.stdout) == (name == "first")  # built once
        built.add((tmp_path / "said" / "manifest.json").stat().st_mtime_ns)
        student = StudentForImageClassification.from_pretrained(tmp_path / name / "student")
        depth = int(option.removeprefix("depth="))
        assert len(student.timm_model.blocks) == depth == student.config.model_args["depth"]
    assert len(built) == 1


@pytest.mark.slow
def test_folds_are_trained_apart_pooled_and_resumed(tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "num_train_epochs": 1, "teacher_num_train_epochs": 1, "saliency": False}))
    shared = ["--config", str(config), "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    done = train_kd(*shared, "--folds", "0", "2")
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run"
    pooled = Predictions.read(run / "predictions.parquet")
    parts = [Predictions.read(run / f"fold-{fold}" / "predictions.parquet") for fold in (0, 2)]
    assert sorted(pooled.slices) == sorted(number for part in parts for number in part.slices)
    assert set(pooled.folds) == {0, 2} and len(set(pooled.slices)) == len(pooled)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["run"]["folds"] == [0, 2] and list(metrics["models"]) == ["teacher", "baseline", "student"]
    assert metrics["models"]["student"]["n"] == len(pooled)
    for fold in (0, 2):
        card = (run / f"fold-{fold}" / "student" / "README.md").read_text()
        assert "Test splits of folds 0, 2 pooled" in card and f"(fold {fold}, seed 7)" in card
        (result,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
        assert result["dataset"]["args"] == {"folds": [0, 2], "pooled": True}
        assert result["metrics"][0]["value"] == pytest.approx(metrics["models"]["student"]["accuracy"], abs=1e-4)
    weights = {path.parent.parent.name: path.read_bytes() for path in run.glob("fold-*/student/model.safetensors")}
    assert weights["fold-0"] != weights["fold-2"]

    # one more fold, after an interruption in the midst of another: only what is missing is done
    (run / "fold-2" / "metrics.json").unlink()
    untaught = write_card_of_baseline(run / "fold-0").read_text(encoding="utf-8")
    assert "It was trained without a teacher" in untaught and "Test splits of folds 0, 2 pooled" in untaught
    done = train_kd(*shared, "--folds", "0 2 4")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "fold-0 holds this run, finished" in done.stdout and "student: finished earlier" in done.stdout
    assert {
        path.parent.parent.name: path.read_bytes() for path in run.glob("fold-[02]/student/model.safetensors")
    } == weights
    assert set(Predictions.read(run / "predictions.parquet").folds) == {0, 2, 4}
    done = train_kd(*shared, "--folds", "0", "2", "4")
    assert done.returncode == 0 and f"{run} holds this run, finished; nothing to do." in done.stdout

    alone = train_kd(*shared[:2], *shared[4:], "--fold", "0", "--output_dir", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert (tmp_path / "alone" / "student" / "model.safetensors").read_bytes() == weights["fold-0"]

    shared_teacher = train_kd(*shared, "--folds", "all", "--teacher", str(run / "fold-0" / "teacher"))
    assert shared_teacher.returncode != 0 and "would be shared by folds" in shared_teacher.stderr
