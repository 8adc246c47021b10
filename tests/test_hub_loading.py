"""What a stranger with no cache loads from the Hub after a push equals what was pushed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_kdmri import StudentForImageClassification
from hf_kdmri.hub import plan_release, push_release
from tests.hub import serve_hub
from tests.hub.client import ROOT, hub_environment, use_hub
from tests.hub.run_fixture import make_run

pytestmark = pytest.mark.slow

# In a process that cannot import this repository, but for the line that loads with our own class.
LOADER = """
import json, sys
import numpy as np, torch, timm
from PIL import Image
from huggingface_hub import hf_hub_download
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
name, tag = "jane/x", "v1.0"
pixels = torch.from_numpy(np.load(sys.argv[1]))
sample = Image.open(hf_hub_download(name, "samples/glioma.png"))
with torch.inference_mode():
    auto = AutoModelForImageClassification.from_pretrained(name, revision=tag).eval()
    logits = {"auto": auto(pixels).logits, "timm": timm.create_model(f"hf-hub:{name}", pretrained=True).eval()(pixels)}
    inputs = AutoImageProcessor.from_pretrained(name)(sample.convert("RGB"), return_tensors="pt")
    shown = auto(**inputs).logits.softmax(-1)[0]
    assert "hf_kdmri" not in sys.modules
    answers = {row["label"]: row["score"] for row in pipeline("image-classification", model=name)(sample)}
    teacher = pipeline("image-classification", model=f"{name}-teacher")(sample)
    from hf_kdmri import StudentForImageClassification
    ours = StudentForImageClassification.from_pretrained(name)
    logits["ours"] = ours(pixels).logits
print(json.dumps({
    **{key: value.tolist() for key, value in logits.items()},
    "pipeline": answers, "shown": {auto.config.id2label[i]: p for i, p in enumerate(shown.tolist())},
    "teacher": [row["label"] for row in teacher], "data": ours.config.distillation["data"],
    "onnx": hf_hub_download(name, "onnx/model.onnx"),
}))
"""
DATASET_LOADER = """
import json, sys
from datasets import load_dataset
splits = load_dataset("jane/slices", "patient_groups")
stream = load_dataset("jane/slices", split="test", streaming=True)
print(json.dumps({name: [[row["slice"], row["label"], row["pid"], list(row["image"].size), sum(row["image"].tobytes())]
      for row in split] for name, split in splits.items()} | {"stream": [row["slice"] for row in stream]}))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serve_hub() as hub:
        use_hub(monkeypatch, hub)
        yield hub


def run_script(script: str, environment: dict[str, str], *arguments: str) -> dict:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_library_gets_the_same_model(hub, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    run = make_run(tmp_path / "run")
    push_release(plan_release(run, "jane/x"), private=True, tag="v1.0")
    pixels = torch.randn(3, 3, 32, 32)
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    told = run_script(LOADER, hub_environment(hub, tmp_path / "home"), str(tmp_path / "pixels.npy"))
    student = StudentForImageClassification.from_pretrained(run / "student").eval()
    with torch.inference_mode():
        expected = student(pixels).logits
    for way in ("auto", "timm", "ours"):
        torch.testing.assert_close(torch.tensor(told[way]), expected, atol=1e-5, rtol=0, msg=way)
    assert told["pipeline"] == pytest.approx(told["shown"], abs=1e-5)
    assert sorted(told["teacher"]) == sorted(student.labels)
    assert told["data"] == "generated phantoms"
    (logits,) = onnxruntime.InferenceSession(told["onnx"]).run(["logits"], {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)


def test_the_data_set_comes_back_row_by_row(hub, phantom_dir: Path, tmp_path: Path):
    from dataset_script import convert, upload
    from dataset_script.figshare_brain_tumor import FigshareBrainTumor

    options = ["--data_dir", str(phantom_dir), "--cache_dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    convert.main(options)
    upload.main([str(tmp_path / "out"), "--to", "jane/slices", "--private", "--tag", "v1.0"])
    assert 'load_dataset("jane/slices", "patient_groups")' in hub.dataset("jane/slices").files["README.md"].decode()
    environment = hub_environment(hub, tmp_path / "home", HF_DATASETS_OFFLINE="0")
    told = run_script(DATASET_LOADER, environment)
    builder = FigshareBrainTumor(data_dir=str(phantom_dir), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    for name, split in builder.as_dataset().items():
        rows = [
            [row["slice"], row["label"], row["pid"], list(row["image"].size), sum(row["image"].tobytes())]
            for row in split
        ]
        assert sorted(told[name]) == sorted(rows), name
    assert sorted(told["stream"]) == sorted(row[0] for row in told["test"])
