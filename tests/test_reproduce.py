"""`kdmri reproduce`: a run made again with data workers is the same to the last digit, and a difference is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import TINY
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.training.job import CannotRun
from hf_kdmri.training.reproduce import compare
from hf_kdmri.training.run_folder import RunFolder

ONE_EPOCH = TINY | {"num_train_epochs": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(ONE_EPOCH))
    threads, arguments = torch.get_num_threads(), sys.argv
    sys.argv = ["train_kd.py", "--config", str(folder / "tiny.yaml"), "--output_dir", str(folder / "run")]
    try:
        import train_kd

        train_kd.main()
    finally:
        sys.argv = arguments
        torch.set_num_threads(threads)
    return folder / "run"


@pytest.mark.slow
class TestReproduce:
    def test_the_same_machine_gives_the_same_digits(self, finished: Path):
        config = finished / "config.yaml"
        options = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**options, "dataloader_num_workers": 2}))
        done = CliRunner().invoke(app, ["reproduce", str(finished)])
        assert done.exit_code == 0, done.output
        again = finished.with_name("run-again")
        assert "every number must be equal. Largest difference: 0." in done.output
        assert f"Reproduced in {again}" in done.output
        assert done.output.count("the same, byte for byte") == 2
        told = compare(RunFolder(finished), RunFolder(again), tolerance=0.0)
        assert told.exact and told.numbers > 300 and not told.differences and told.largest == 0.0

    def test_its_environment_names_the_data_and_the_command(self, finished: Path):
        told = json.loads((finished / "environment.json").read_text())
        assert set(told["data"]) == {"train", "validation", "test"}
        (launch,) = told["launches"]
        assert "tiny.yaml" in " ".join(launch["command"]) and launch["deterministic"] and launch["threads"] == 1

    def test_any_other_digit_is_told(self, finished: Path, tmp_path: Path):
        other = Path(shutil.copytree(finished, tmp_path / "other"))
        metrics = json.loads((other / "metrics.json").read_text())
        metrics["models"]["student"]["accuracy"] += 1e-12
        (other / "metrics.json").write_text(json.dumps(metrics))
        done = CliRunner().invoke(app, ["reproduce", str(finished), "--output_dir", str(other)])
        assert done.exit_code == 1
        assert "models student accuracy: " in done.output and "Not reproduced." in done.output

    def test_with_other_versions_scores_may_differ_a_little(self, finished: Path, tmp_path: Path):
        other = Path(shutil.copytree(finished, tmp_path / "other"))
        environment = json.loads((other / "environment.json").read_text())
        environment["launches"][-1]["versions"]["torch"] = "0.1"
        (other / "environment.json").write_text(json.dumps(environment))
        metrics = json.loads((other / "metrics.json").read_text())
        for change, code in ((0.01, 0), (0.2, 1)):
            row = {**metrics["models"]["student"], "accuracy": metrics["models"]["student"]["accuracy"] + change}
            changed = {**metrics, "models": {**metrics["models"], "student": row}}
            (other / "metrics.json").write_text(json.dumps(changed))
            done = CliRunner().invoke(app, ["reproduce", str(finished), "--output_dir", str(other)])
            assert done.exit_code == code, done.output
            assert "Differs: versions torch: " in done.output and "0.1 now" in done.output
            assert "scores may differ by 0.05" in done.output


def test_what_cannot_be_reproduced_is_said_in_one_line(tmp_path: Path):
    done = CliRunner().invoke(app, ["reproduce", str(tmp_path / "nowhere")])
    assert done.exit_code == 2 and "holds no finished run" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(CannotRun, match="is not finished"):
        compare(RunFolder(tmp_path), RunFolder(tmp_path), tolerance=0.0)
