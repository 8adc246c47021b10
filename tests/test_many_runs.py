"""A plan of models trained side by side: all are made, nothing is made twice, and what they say can be pooled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ImageOps
from transformers import pipeline

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.loading import load_slices
from tests.conftest import LABELS, ROOT

pytestmark = pytest.mark.slow

PLAN: dict[str, Any] = {
    "options": {
        "student_architecture": "test_vit", "teacher_architecture": "test_resnet", "mask_weight": 1.0,
        "student_image_size": 64, "teacher_image_size": 64, "num_train_epochs": 1, "teacher_num_train_epochs": 1,
        "per_device_train_batch_size": 8, "save_strategy": "no", "disable_tqdm": True,
    },
    "test": True,
    "runs": [
        {"name": "hinton-f{fold}-s{seed}", "stage": "student", "teacher": "teacher-f{fold}", "seeds": [1]},
        {"name": "teacher-f{fold}", "stage": "teacher", "folds": [0]},
        {"name": "alone-f{fold}-s{seed}", "stage": "baseline", "folds": [0, 1], "seeds": [1]},
        {"name": "ship", "stage": "baseline", "split": "all"},
    ],
}  # fmt: skip


def run(script: str, *arguments: object, fails: int = 0) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / "experiments" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == fails, result.stdout + result.stderr
    return result.stderr if fails else result.stdout


def test_a_plan_is_carried_out_once_and_pooled(phantom_dir: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "runs"
    plan.write_text(yaml.safe_dump(PLAN))
    options = ("--out", out, "--data_dir", phantom_dir, "--cache_dir", tmp_path / "cache", "--jobs", 2)
    why = run("many_runs.py", plan, *options, "--only", "hinton-*", fails=2)
    assert "hinton-f0-s1 needs teacher-f0" in why and "--only" in why
    lost = tmp_path / "lost.yaml"
    lost.write_text(yaml.safe_dump({**PLAN, "options": {**PLAN["options"], "student_weights": "lost.safetensors"}}))
    why = run("many_runs.py", lost, *options, "--only", "alone-*", fails=2)
    assert "alone-f0-s1 starts from lost.safetensors" in why and not list(out.glob("**/*.npz"))
    assert "1 of 1 runs" in run("many_runs.py", plan, *options, "--only", "teacher-*")
    assert [path.stem for path in out.glob("*.npz")] == ["teacher-f0"]
    with ThreadPoolExecutor() as commands:  # the same one given twice, at the same time
        both = list(commands.map(lambda _: run("many_runs.py", plan, *options), range(2)))
    begun = sorted(line.split(":")[0] for text in both for line in text.splitlines() if ": clean" in line)
    assert begun == ["alone-f0-s1", "alone-f1-s1", "hinton-f0-s1", "ship"]
    assert "5 of 5 runs" in run("many_runs.py", plan, *options)
    names = ["alone-f0-s1", "alone-f1-s1", "hinton-f0-s1", "ship", "teacher-f0"]
    assert sorted(path.stem for path in out.glob("*.npz")) == names
    slices = load_slices(data_dir=str(phantom_dir), cache_dir=str(tmp_path / "cache"), fold=0)
    with np.load(out / "hinton-f0-s1.npz") as said:
        for split in ("validation", "test"):
            assert said[f"{split} slice"].tolist() == slices[split]["slice"][:]
            assert said[f"{split} label"].tolist() == slices[split]["label"][:]
            assert said[f"{split} other look"].shape == (3, len(slices[split]), 3)
            for name in ("clean", "cropped", "other look"):
                np.testing.assert_allclose(said[f"{split} {name}"].sum(-1), 1, rtol=1e-5)
    with np.load(out / "ship.npz") as said:
        assert not any(name.startswith("test") for name in said)  # it was trained on them
    student = StudentForImageClassification.from_pretrained(out / "hinton-f0-s1" / "student")
    assert student.config.architecture == "test_vit"

    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert "5 of 5 runs" in run("many_runs.py", plan, *options)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")} == written

    pooled = tmp_path / "pooled.json"
    printed = run(
        "pool_runs.py",
        out,
        plan,
        "--split",
        "test",
        "--against",
        "teacher:hinton",
        "--json",
        pooled,
        "--ensemble",
        "both=teacher+hinton",
    )
    told = json.loads(pooled.read_text())
    assert set(told["entries"]) == {"alone", "hinton", "teacher", "both"} and "teacher:hinton" in printed
    with np.load(out / "alone-f0-s1.npz") as first, np.load(out / "alone-f1-s1.npz") as second:
        right = [one["test clean"].argmax(1) == one["test label"] for one in (first, second)]
    assert told["entries"]["alone"]["accuracy"]["value"] == pytest.approx(np.concatenate(right).mean())
    assert told["runs"]["alone-f1-s1"]["code"]["package"] == "hf_kdmri"
    run("pool_runs.py", out, plan, "--split", "test", "--folds", 0, "--json", pooled, "--against", "hinton:alone")
    of_fold = json.loads(pooled.read_text())
    assert of_fold["entries"]["alone"]["accuracy"]["value"] == right[0].mean()
    assert of_fold["entries"]["alone"]["accuracy_by_fold"] == [right[0].mean()]
    with np.load(out / "teacher-f0.npz") as first, np.load(out / "hinton-f0-s1.npz") as second:
        together = (first["test clean"] + second["test clean"]).argmax(1) == first["test label"]
    assert told["entries"]["both"]["accuracy"]["value"] == pytest.approx(together.mean())
    command = ("pool_runs.py", out, plan, "--split", "test", "--against")
    assert "tested on other folds" in run(*command, "hinton:alone", fails=1)
    assert "no seed of 'fusion' is finished" in run(*command, "hinton:fusion", fails=1)
    command = ("pool_runs.py", out, plan, "--split", "test", "--ensemble")
    assert "tested on other folds" in run(*command, "both=hinton+alone", fails=1)
    assert "no seed of 'fusion' is finished" in run(*command, "both=hinton+fusion", fails=1)

    means = tmp_path / "means"
    asking = ("flips.py", out, plan, "--out", means, "--split", "test", "--json", pooled)
    assert "give --data_dir" in run(*asking, fails=1)
    assert "choose another one" in run("flips.py", out, plan, "--out", out, fails=2)
    run(*asking, "--data_dir", phantom_dir, "--cache_dir", tmp_path / "cache")
    classify = pipeline("image-classification", model=str(out / "hinton-f0-s1" / "student"), top_k=3)
    with np.load(out / "hinton-f0-s1.npz") as plain, np.load(means / "hinton-f0-s1.npz") as mean:
        for row, image in enumerate(slices["test"]["image"][:3]):
            mirrored = {one["label"]: one["score"] for one in classify(ImageOps.mirror(image))}
            both = (plain["test clean"][row] + [mirrored[label] for label in LABELS]) / 2
            np.testing.assert_allclose(mean["test clean"][row], both, atol=1e-4)
    told = json.loads(pooled.read_text())["entries"]
    assert set(told) == {"alone", "hinton", "teacher"}
    run(*asking)  # what was asked is not asked again
    why = run("flips.py", tmp_path / "elsewhere", plan, "--out", means, fails=1)
    assert "has not all the runs of" in why and "elsewhere" in why

    plan.write_text(yaml.safe_dump({**PLAN, "altered": False}))  # a plan may leave the altered slices out
    (out / "alone-f0-s1.npz").unlink()
    (out / "alone-f1-s1.npz").unlink()
    made_by = (out / "alone-f0-s1" / "made_by.json").stat().st_mtime_ns
    assert "5 of 5 runs" in run("many_runs.py", plan, *options)
    assert (out / "alone-f0-s1" / "made_by.json").stat().st_mtime_ns == made_by  # answered again, not trained again
    with np.load(out / "alone-f0-s1.npz") as said:
        assert "test clean" in said and not any("cropped" in name or "look" in name for name in said)
    run("pool_runs.py", out, plan, "--split", "test", "--json", pooled)
    assert "balanced_cropped" not in json.loads(pooled.read_text())["entries"]["alone"]

    further = plan.with_name("further.yaml")
    self_taught = {"name": "self", "stage": "student", "teacher": "hinton-f0-s1"}  # a student may teach another
    still = {"goes_on_from": "teacher-f0", "options": {"teacher_learning_rate": 0.0}}  # keeps what that one has learnt
    runs = [self_taught, {"name": "still", "stage": "teacher", **still}]
    further.write_text(yaml.safe_dump({"like": plan.name, "test": False, "runs": runs}))
    assert "2 of 2 runs" in run("many_runs.py", further, *options)
    weights = [
        dict(TeacherForImageClassification.from_pretrained(out / name / "teacher").named_parameters())
        for name in ("teacher-f0", "still")
    ]
    for key, value in weights[0].items():
        np.testing.assert_array_equal(value.detach(), weights[1][key].detach())
    assert "test label" not in np.load(out / "self.npz")
    assert StudentForImageClassification.from_pretrained(out / "self" / "student").config.architecture == "test_vit"
    trained = (out / "self" / "history.jsonl").stat().st_mtime_ns
    further.write_text(yaml.safe_dump({"like": plan.name, "runs": runs}))  # the test slices as well
    assert "2 of 2 runs" in run("many_runs.py", further, *options)
    assert "test label" in np.load(out / "self.npz")
    assert (out / "self" / "history.jsonl").stat().st_mtime_ns == trained
    logged = [json.loads(line) for line in (out / "self" / "history.jsonl").read_text().splitlines()]
    assert any("loss_logit" in row for row in logged), logged
