"""Trainer's own pushes during training, and `train_kd.py --push_to_hub`, against a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from hf_kdmri import StudentForImageClassification
from tests.hub import Fault, refuse, serve_hub
from tests.hub.client import ROOT, hub_environment, use_hub
from tests.test_train_kd import TINY
from tests.tiny import tiny_trainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serve_hub() as hub:
        use_hub(monkeypatch, hub)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # kept by transformers with the first address
        yield hub


def trained(tmp_path: Path, **options):
    options = {
        "push_to_hub": True,
        "hub_model_id": "jane/s",
        "save_strategy": "epoch",
        "hub_always_push": True,
        **options,
    }
    trainer = tiny_trainer(tmp_path / "out", hub_token="hf_jane", **options)
    trainer.train()
    return trainer


def assert_holds_the_student(hub, trainer, tmp_path: Path) -> None:
    folder = snapshot_download("jane/s", cache_dir=tmp_path / "cache")
    StudentForImageClassification.from_pretrained(folder)
    student = {f"timm_model.{key}": value for key, value in load_file(Path(folder) / "model.safetensors").items()}
    for name, value in trainer.model.student.state_dict().items():
        torch.testing.assert_close(student[name], value.cpu(), atol=0, rtol=0)


def test_every_save_pushes_the_student_and_nothing_else(hub, tmp_path):
    trainer = trained(tmp_path, hub_strategy="every_save")
    repository = hub.model("jane/s")
    assert sorted(repository.files) == ["README.md", "config.json", "model.safetensors"]
    assert repository.titles == ["Training in progress, epoch 2", "Training in progress, epoch 1", "initial commit"]
    assert_holds_the_student(hub, trainer, tmp_path)
    assert "whose training is not finished" in repository.files["README.md"].decode()
    assert not any(b"hf_jane" in data for data in hub.objects.values())


def test_checkpoint_pushes_what_training_can_go_on_from(hub, tmp_path):
    trained(tmp_path, hub_strategy="checkpoint", save_total_limit=5)
    names = set(hub.model("jane/s").files)
    assert {"model.safetensors", "last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} <= names
    assert not [name for name in names if "training_args" in name]
    assert not any(b"hf_jane" in data for data in hub.objects.values())  # a pickle of the arguments would hold it
    folder = snapshot_download("jane/s", cache_dir=tmp_path / "cache")
    again = tiny_trainer(tmp_path / "again", num_train_epochs=3)
    again.train(resume_from_checkpoint=f"{folder}/last-checkpoint")
    assert again.state.global_step == 3 * 4


def test_end_pushes_when_the_model_is_saved(hub, tmp_path):
    trainer = trained(tmp_path, hub_strategy="end")
    assert hub.model("jane/s").files == {}
    trainer.save_model()
    assert hub.model("jane/s").titles[0] == "Model save"
    assert sorted(hub.model("jane/s").files) == ["README.md", "config.json", "model.safetensors"]
    assert_holds_the_student(hub, trainer, tmp_path)
    (tmp_path / "out" / "README.md").write_text("---\ntags: [mine]\n---\n# mine\n")
    assert trainer.push_to_hub("finished").oid == hub.model("jane/s").head.oid
    assert hub.model("jane/s").files["README.md"].decode().endswith("# mine\n")


def test_a_push_that_fails_is_told_and_training_goes_on(hub, tmp_path, caplog):
    hub.faults.append(Fault("POST /api/models/jane/s/commit", refuse(500), times=99))
    trainer = trained(tmp_path, hub_strategy="every_save")
    assert trainer.state.global_step == 2 * 4
    assert "a push to the Hub during training failed, training goes on" in caplog.text


def test_train_kd_pushes_the_finished_run(hub, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        yaml.safe_dump(
            {**TINY, "num_train_epochs": 1, "teacher_num_train_epochs": 1, "baseline": False, "saliency": False}
        )
    )
    command = [sys.executable, "train_kd.py", "--config", str(config), "--output_dir", str(tmp_path / "run")]
    command += ["--push_to_hub", "--hub_model_id", "jane/tiny", "--hub_private_repo", "true", "--hub_token", "hf_jane"]
    environment = hub_environment(hub, tmp_path / "home", token=None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Pushed to: {hub.url}/jane/tiny/commit/{hub.model('jane/tiny').head.oid}" in done.stdout
    student = hub.model("jane/tiny")
    assert {"README.md", "config.json", "model.safetensors", "results.json", "samples/glioma.png"} <= set(student.files)
    assert student.private and hub.model("jane/tiny-teacher").private and len(hub.collections) == 1
    provenance = yaml.safe_load(student.files["config.json"])["distillation"]
    assert provenance["teacher"] == {"architecture": "test_resnet", "hub_id": "jane/tiny-teacher"}
    assert provenance["losses"]["logit_weight"] == 1.0 and provenance["slices"]["test"] > 0
    assert len(provenance["code"].get("commit", "0" * 40)) == 40
    for path in (tmp_path / "run").rglob("*"):  # the command is shown in metrics, report and card, the token is not
        assert not path.is_file() or b"hf_jane" not in path.read_bytes(), path
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0 and again.stdout.count("On the Hub already: ") == 2, again.stdout + again.stderr
