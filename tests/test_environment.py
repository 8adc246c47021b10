"""What a run was made with is kept, and tokens are not."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdmri.data.loading import load_slices
from hf_kdmri.secrets import HIDDEN, hide_in_command, hide_secrets
from hf_kdmri.training.environment import data_fingerprint, describe_environment, environment_differences
from hf_kdmri.training.options import parse_options
from hf_kdmri.training.run_folder import RunFolder
from tests.conftest import ROOT

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"  # of the Hub's form, of nobody


def test_it_names_versions_code_hardware_and_threads():
    told = describe_environment()
    for name in ("torch", "transformers", "timm", "numpy", "kornia", "pillow"):
        assert told["versions"][name]
    assert told["threads"] >= 1 and told["hardware"]["cores"] == os.cpu_count() and told["processes"] == 1
    assert told["code"]["version"]
    if "commit" in told["code"]:
        assert len(told["code"]["commit"]) == 40 and isinstance(told["code"]["modified"], bool)
    json.dumps(told)


def test_differences_are_named_and_time_is_none():
    before = describe_environment()
    now = json.loads(json.dumps({**before, "time": "later", "command": ["other"]}))
    assert environment_differences(before, now) == []
    now["versions"]["torch"], now["threads"] = "0.1", 99
    del now["versions"]["timm"]
    lines = environment_differences(before, now)
    assert any(line.startswith("versions torch: ") and line.endswith("0.1 now") for line in lines)
    assert any(line.startswith("versions timm: ") and line.endswith("absent now") for line in lines)
    assert any(line.startswith("threads: ") for line in lines) and len(lines) == 3


def test_the_fingerprint_is_of_images_labels_and_groups(phantom_dir: Path, tmp_path: Path):
    splits = load_slices(data_dir=phantom_dir, cache_dir=tmp_path)
    told = data_fingerprint(splits)
    assert told == data_fingerprint(splits)
    assert {name: row["images"] for name, row in told.items()} == {name: len(split) for name, split in splits.items()}
    fewer = data_fingerprint({"test": splits["test"].select(range(len(splits["test"]) - 1))})
    assert fewer["test"]["sha256"] != told["test"]["sha256"]


def test_every_launch_is_kept(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.add_launch({"threads": 1}, {"test": {"images": 3}})
    run.add_launch({"threads": 2})
    told = run.read_environment()
    assert told is not None
    assert [launch["threads"] for launch in told["launches"]] == [1, 2] and told["data"] == {"test": {"images": 3}}


def test_tokens_are_hidden_whatever_their_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WANDB_API_KEY", "an-odd-key-of-another-service")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    text = f"push with {TOKEN} and an-odd-key-of-another-service of hf_kdmri in {tmp_path}"
    assert hide_secrets(text) == f"push with {HIDDEN} and {HIDDEN} of hf_kdmri in {tmp_path}"
    assert hide_in_command(["--hub_token", "short", "--fold", "1"]) == ["--hub_token", HIDDEN, "--fold", "1"]


def test_no_file_of_a_run_holds_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = "hf_" + "Z" * 34
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = ["--output_dir", str(tmp_path / "run"), "--hub_token", secret]
    monkeypatch.setattr(sys, "argv", ["train_kd.py", *arguments])
    run = RunFolder(tmp_path / "run")
    run.open(parse_options(arguments))
    run.add_launch(describe_environment())
    from hf_kdmri.hub.provenance import public_command
    from hf_kdmri.training.report.outcome import run_command

    run.write_metrics({"command": run_command(), "public": public_command(shlex.split(run_command()))})
    written = [path.read_text() for path in run.path.rglob("*") if path.is_file()]
    assert len(written) == 3
    for text in written:
        assert TOKEN not in text and secret not in text


def test_logs_and_tracebacks_hide_tokens(tmp_path: Path):
    script = tmp_path / "leaks.py"
    script.write_text(
        "import logging, os\n"
        "from hf_kdmri.secrets import hide_in_logs_and_tracebacks\n"
        "logging.basicConfig(level='INFO')\n"
        "hide_in_logs_and_tracebacks()\n"
        "hide_in_logs_and_tracebacks()\n"
        "logging.getLogger('some.library').warning('got %s', os.environ['HF_TOKEN'])\n"
        "raise ValueError('refused: ' + os.environ['HF_TOKEN'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, env={**os.environ, "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    assert f"got {HIDDEN}" in done.stderr and f"ValueError: refused: {HIDDEN}" in done.stderr
    assert "leaks.py" in done.stderr and done.returncode == 1


def test_log_records_whose_arguments_do_not_fit_stay_as_they_are(capsys: pytest.CaptureFixture[str]):
    record = logging.getLogRecordFactory()("x", logging.INFO, "f", 1, "%d", ("no number",), None)
    assert record.msg == "%d"
