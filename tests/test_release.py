"""A finished run on its way to the Hub: student, teacher, collection; and what a stranger loads from there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.hub import PublishError, hub_errors, plan_release, push_release
from hf_kdmri.hub.card_rules import check_card
from hf_kdmri.hub.samples import write_samples
from tests.hub import Fault, refuse, serve_hub
from tests.hub.client import use_hub
from tests.hub.run_fixture import make_run

OTHER_CARD = "---\npipeline_tag: image-classification\nlibrary_name: transformers\n---\n# other\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("made") / "run")
    (run / "student" / "onnx").mkdir()
    (run / "student" / "onnx" / "model.onnx").write_bytes(bytes(2000))  # newer than the weights, so that it is kept
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))  # with the times of the files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serve_hub() as hub:
        slept = use_hub(monkeypatch, hub)
        monkeypatch.setattr(hub_errors.time, "sleep", slept.append)
        yield hub


def kdmri(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_student_goes_with_everything_a_stranger_needs(run, hub):
    released = push_release(plan_release(run, "jane/x"), tag="v1.0")
    student, teacher = hub.model("jane/x"), hub.model("jane/x-teacher")
    assert sorted(student.files) == [
        "README.md",
        "config.json",
        "figures/training_curves.png",
        "handler.py",
        "model.safetensors",
        "onnx/model.onnx",
        "results.json",
        *(f"samples/{name}.png" for name in sorted(LABEL_NAMES)),
    ]
    assert sorted(teacher.files) == ["README.md", "config.json", "model.safetensors"]
    assert [len(repository.commits) for repository in (student, teacher)] == [2, 2]
    assert student.tags == {"v1.0": student.head.oid} and teacher.tags == {"v1.0": teacher.head.oid}
    assert [repository.plan.repo_id for repository in released.repositories] == ["jane/x-teacher", "jane/x"]
    assert hub.collections[released.collection_url.split("/collections/")[1]].title == "x: student, teacher, data"


def test_provenance_stands_in_the_config(run, hub):
    before = (run / "student" / "config.json").read_bytes()
    push_release(plan_release(run, "jane/x"))
    told = json.loads(hub.model("jane/x").files["config.json"])["distillation"]
    assert told["teacher"] == {"architecture": "test_resnet", "hub_id": "jane/x-teacher"}
    assert told["losses"] == {"cross_entropy_weight": 1.0, "temperature": 4.0, "logit_weight": 1.0}
    assert (told["data"], told["split"], told["fold"], told["seed"]) == ("generated phantoms", "patient_groups", 0, 7)
    assert told["versions"] == {"torch": "2", "timm": "1"} and told["code"]["package"] == "hf_kdmri"
    assert (run / "student" / "config.json").read_bytes() == before


def test_results_name_nobodys_folders(run, hub):
    push_release(plan_release(run, "jane/x"))
    text = hub.model("jane/x").files["results.json"].decode()
    assert str(run.parent) not in text and str(run.parents[1]) not in text
    assert json.loads(text)["run"]["command"] == "accelerate launch train_kd.py --config tiny.yaml --data_dir=run"
    assert json.loads(text)["models"]["student"]["accuracy"] == 0.9


def test_a_fold_of_several_brings_the_pooled_results(run, hub, tmp_path):
    whole = tmp_path / "folds"
    fold = whole / "fold-1"
    shutil.copytree(run, fold)
    metrics = json.loads((fold / "metrics.json").read_text())
    pooled = {**metrics, "run": {**metrics["run"], "folds": [0, 1], "fold": None}}
    pooled["models"] = {"student": {**metrics["models"]["student"], "accuracy": 0.7}}
    (whole / "metrics.json").write_text(json.dumps(pooled))
    (whole / "figures").mkdir()
    Image.new("L", (9, 9)).save(whole / "figures" / "confusion.png")
    push_release(plan_release(fold, "jane/x"), collection=False)
    results = json.loads(hub.model("jane/x").files["results.json"])
    assert results["models"]["student"]["accuracy"] == 0.9
    assert results["pooled_over_folds"]["models"]["student"]["accuracy"] == 0.7
    assert {"figures/confusion.png", "figures/training_curves.png"} <= set(hub.model("jane/x").files)


def test_the_cards_link_both_ways(run, hub):
    hub.create("dataset", "jane/slices")
    push_release(plan_release(run, "jane/x", dataset_id="jane/slices"))
    card = ModelCard(hub.model("jane/x").files["README.md"].decode())
    assert card.data.base_model == "jane/x-teacher" and card.data.datasets == ["jane/slices"]
    assert card.data.eval_results and card.data.license == "apache-2.0"
    assert "https://huggingface.co/jane/x-teacher" in card.text and "datasets/jane/slices" in card.text
    assert 'model="jane/x"' in card.text and '"hf-hub:jane/x"' in card.text and "path/to" not in card.text
    teacher = ModelCard(hub.model("jane/x-teacher").files["README.md"].decode())
    assert "https://huggingface.co/jane/x)" in teacher.text and 'model="jane/x-teacher"' in teacher.text
    assert teacher.data.pipeline_tag == "image-classification" and teacher.data.library_name == "transformers"
    assert "TRAINED ON GENERATED PHANTOMS" in teacher.text and "not-for-use" in teacher.data.tags
    assert {result.metric_type: result.metric_value for result in teacher.data.eval_results} == {
        "accuracy": 0.9,
        "f1": 0.8,
    }
    (collection,) = hub.collections.values()
    assert [(item["type"], item["id"]) for item in collection.items] == [
        ("model", "jane/x"),
        ("model", "jane/x-teacher"),
        ("dataset", "jane/slices"),
    ]


def test_a_data_set_that_is_not_there_stops_the_push_before_anything_is_sent(run, hub):
    with pytest.raises(PublishError, match="there is no dataset jane/absent"):
        push_release(plan_release(run, "jane/x", dataset_id="jane/absent"))
    assert not hub.repositories


def test_the_cards_keep_the_hubs_rules(run, tmp_path):
    release = plan_release(run, "jane/x", dataset_id="jane/slices")
    for plan in release.repositories:
        folder = tmp_path / plan.repo_id
        for name, content in plan.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        check_card(folder)


def test_samples_are_small_grey_pictures_and_stay_as_they_are(run):
    mine = run / "student" / "samples" / "glioma.png"
    mine.parent.mkdir()
    Image.new("L", (256, 256), 7).save(mine)
    plan_release(run, "jane/x")
    for name in LABEL_NAMES:
        with Image.open(run / "student" / "samples" / f"{name}.png") as picture:
            assert (picture.mode, picture.size) == ("L", (256, 256))
            assert (picture.getextrema() == (7, 7)) == (name == "glioma")


def test_a_repeated_push_says_already_there(run, hub):
    first = kdmri("push", run, "--to", "jane/x", "--tag", "v1.0")
    assert first.exit_code == 0, first.output
    commits = {repo: len(repository.commits) for repo, repository in hub.repositories.items()}
    again = kdmri("push", run, "--to", "jane/x", "--tag", "v1.0")
    assert again.exit_code == 0 and again.output.count("all files are there already") == 2
    assert commits == {repo: len(repository.commits) for repo, repository in hub.repositories.items()}
    assert len(hub.collections) == 1
    (run / "student" / "README.md").write_text(OTHER_CARD)
    changed = kdmri("push", run, "--to", "jane/x", "--tag", "v1.0")
    assert changed.exit_code == 1 and "has a tag v1.0 already" in changed.output


def test_a_dry_run_lists_every_repository_and_sends_nothing(run, hub):
    result = kdmri("push", run, "--to", "jane/x", "--dry-run", "--dataset", "jane/slices")
    assert result.exit_code == 0, result.output
    for line in ("jane/x-teacher:", "jane/x:", "onnx/model.onnx", "samples/glioma.png", "nothing was sent"):
        assert line in result.output
    assert f"{(run / 'student' / 'onnx' / 'model.onnx').stat().st_size:>14,}  onnx/model.onnx" in result.output
    assert "Collection “x: student, teacher, data”: jane/slices, jane/x, jane/x-teacher" in result.output
    assert hub.requests == []


def test_what_can_be_left_out(run, hub):
    release = plan_release(run, "jane/x", teacher=False, onnx=False)
    push_release(release, collection=False)
    assert list(hub.repositories) == [("model", "jane/x")] and not hub.collections
    assert "onnx/model.onnx" not in hub.model("jane/x").files
    assert ModelCard(hub.model("jane/x").files["README.md"].decode()).data.base_model is None


def test_files_of_an_earlier_push_do_not_stay_beside_new_weights(run, hub):
    push_release(plan_release(run, "jane/x"))
    push_release(plan_release(run, "jane/x", onnx=False))
    assert "onnx/model.onnx" not in hub.model("jane/x").files


@pytest.mark.slow
def test_onnx_is_made_anew_for_newer_weights(run):
    pytest.importorskip("onnxruntime")
    target, weights = run / "student" / "onnx" / "model.onnx", run / "student" / "model.safetensors"
    made = target.stat().st_mtime_ns
    plan_release(run, "jane/x")
    assert target.stat().st_mtime_ns == made
    later = target.stat().st_mtime + 100
    os.utime(weights, (later, later))
    target.write_bytes(b"old")
    os.utime(target, (later - 50, later - 50))
    plan_release(run, "jane/x")
    assert target.stat().st_size > 100_000


def test_without_the_extra_the_onnx_file_is_left_out_and_said(run, monkeypatch):
    (run / "student" / "onnx" / "model.onnx").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    release = plan_release(run, "jane/x")
    assert "onnx/model.onnx" not in release.student.files
    assert any("pip install 'hf_kdmri[onnx]'" in note for note in release.notes)


def test_a_teacher_from_the_hub_is_linked_and_not_published_again(tmp_path, hub):
    run = make_run(tmp_path / "run", options={"teacher": "joe/teacher"})
    release = plan_release(run, "jane/x", onnx=False)
    assert release.teacher is None and any("joe/teacher on the Hub: linked" in note for note in release.notes)
    push_release(release, collection=False)
    assert ModelCard(hub.model("jane/x").files["README.md"].decode()).data.base_model == "joe/teacher"


def test_pictures_and_training_state_never_go(run, hub):
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-3/model.safetensors"):
        (run / "student" / name).parent.mkdir(exist_ok=True)
        (run / "student" / name).write_bytes(b"x")
    files = plan_release(run, "jane/x").student.files
    assert not [name for name in files if name.endswith((".pt", ".bin")) or "checkpoint" in name]
    assert "figures/predictions.png" not in files and "figures/saliency.png" not in files


def test_a_push_that_breaks_off_says_which_repository_is_there(run, hub):
    hub.faults.append(Fault("POST /api/models/jane/x/commit", refuse(500), times=9))
    result = kdmri("push", run, "--to", "jane/x")
    assert result.exit_code == 1
    assert "jane/x-teacher: complete, commit" in result.output
    assert "jane/x: uploaded, not in a commit yet: " in result.output and "onnx/model.onnx" in result.output
    hub.faults.clear()
    sent = len(hub.uploads)
    assert kdmri("push", run, "--to", "jane/x").exit_code == 0
    assert len(hub.uploads) == sent and len(hub.model("jane/x-teacher").commits) == 2


def test_a_collection_that_fails_says_that_the_rest_is_there(run, hub):
    hub.faults.append(Fault("POST /api/collections$", refuse(403)))
    with pytest.raises(PublishError, match=r"(?s)the collection.*HTTP 403.*jane/x: complete, commit"):
        push_release(plan_release(run, "jane/x"))


def test_a_tag_that_stands_on_the_teacher_stops_all_of_it(run, hub):
    push_release(plan_release(run, "jane/x"), tag="v1")
    (run / "teacher" / "config.json").write_text((run / "teacher" / "config.json").read_text() + "\n")
    (run / "student" / "README.md").write_text(OTHER_CARD)
    commits = len(hub.model("jane/x").commits)
    with pytest.raises(PublishError, match="jane/x-teacher has a tag v1 already"):
        push_release(plan_release(run, "jane/x"), tag="v1")
    assert len(hub.model("jane/x").commits) == commits


def test_runs_that_cannot_be_pushed_say_why(run, hub):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["run"]["folds"] = [2, 3]
    (run / "metrics.json").write_text(json.dumps(metrics))
    result = kdmri("push", run, "--to", "jane/x")
    assert result.exit_code == 2 and "fold-2" in result.output
    (run / "metrics.json").unlink()
    result = kdmri("push", run, "--to", "jane/x")
    assert result.exit_code == 2 and "is a run that is not finished" in result.output
    assert hub.requests == []


def test_a_model_folder_is_pushed_as_it_is(run, hub):
    write_samples(run / "student", list(LABEL_NAMES))  # which a training run does
    result = kdmri("push", run / "student", "--to", "jane/x", "--private")
    assert result.exit_code == 0, result.output
    assert list(hub.repositories) == [("model", "jane/x")] and hub.model("jane/x").private
    assert "results.json" not in hub.model("jane/x").files


def test_the_model_with_provenance_is_read_and_written_again(run, tmp_path):
    from hf_kdmri import StudentForImageClassification
    from hf_kdmri.hub.provenance import write_provenance

    write_provenance(run / "student", {"teacher": {"architecture": "a"}, "data": "d"})
    model = StudentForImageClassification.from_pretrained(run / "student")
    assert model.config.distillation == {"teacher": {"architecture": "a"}, "data": "d"}
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["distillation"]["data"] == "d"
    assert yaml.safe_load((run / "config.yaml").read_text())["teacher"] is None


def test_a_card_that_breaks_the_hubs_rules_stops_the_push(run, hub):
    card = run / "student" / "README.md"
    card.write_text(card.read_text().replace("pipeline_tag: image-classification", "pipeline_tag: guessing"))
    with pytest.raises(PublishError, match=r"pipeline_tag is 'guessing'"):
        plan_release(run, "jane/x")
    assert not hub.repositories
