"""The run folder: finished or not, this run or another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_kdmri import StudentForImageClassification
from hf_kdmri.training.job import _refuse_other_data
from hf_kdmri.training.options import OptionError, parse_options
from hf_kdmri.training.run_folder import RunFolder
from tests.conftest import LABELS


def options(folder: Path, *more: str):
    return parse_options(["--output_dir", str(folder), *more])


def test_the_same_options_continue_a_run(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.open(options(run.path, "--fold", "1"))
    run.write_history("teacher", [{"epoch": 1}])
    run.open(options(run.path, "--fold", "1", "--data_dir", "elsewhere", "--cpu_threads", "1"))
    assert run.read_history() == [{"stage": "teacher", "epoch": 1}]


def test_other_options_are_refused_with_the_difference(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.open(options(run.path, "--fold", "1"))
    with pytest.raises(OptionError, match=r"fold: 1 there, 2 now[\s\S]*--overwrite_output_dir"):
        run.open(options(run.path, "--fold", "2"))
    run.open(options(run.path, "--fold", "2", "--overwrite_output_dir"))


def test_a_run_from_before_an_option_existed_had_its_default(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.open(options(run.path))
    config = run.path / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if not line.startswith("group_column")]
    config.write_text("\n".join(kept))
    run.open(options(run.path))
    with pytest.raises(OptionError, match="group_column: None there, patient now"):
        run.open(options(run.path, "--dataset_name", "x", "--group_column", "patient"))


def test_one_run_and_a_run_over_folds_do_not_share_a_folder(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.open(options(run.path, "--folds", "0", "1"))
    run.open(options(run.path, "--folds", "all"))
    with pytest.raises(OptionError, match="holds a run over several folds, and --folds says otherwise"):
        run.open(options(run.path))


def test_overwriting_deletes_runs_only(tmp_path: Path):
    precious = tmp_path / "thesis.txt"
    precious.write_text("three years")
    with pytest.raises(OptionError, match="not empty and holds no run"):
        RunFolder(tmp_path).open(options(tmp_path, "--overwrite_output_dir"))
    assert precious.is_file()


def test_a_model_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunFolder(tmp_path)
    student = StudentForImageClassification.from_timm("test_vit", labels=LABELS, image_size=32)

    def fail_half_way(folder, **kwargs):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(student, "save_pretrained", fail_half_way)
        with pytest.raises(OSError, match="No space"):
            run.save_model("student", student)
    assert not run.has_model("student")
    run.save_model("student", student)
    assert run.has_model("student")
    assert StudentForImageClassification.from_pretrained(run.model_folder("student")).labels == LABELS


def test_history_keeps_the_other_stages(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.write_history("teacher", [{"epoch": 1}, {"epoch": 2}])
    run.write_history("student", [{"epoch": 1}])
    run.write_history("student", [{"epoch": 1}, {"epoch": 2}])
    assert [row["stage"] for row in run.read_history()] == ["teacher"] * 2 + ["student"] * 2


def test_metrics_mark_the_end(tmp_path: Path):
    run = RunFolder(tmp_path)
    assert run.read_metrics() is None
    run.write_metrics({"a": 1})
    assert run.read_metrics() == {"a": 1} == json.loads((tmp_path / "metrics.json").read_text())


def test_other_images_than_the_run_was_begun_with_are_refused(tmp_path: Path):
    run = RunFolder(tmp_path)
    begun = {"train": {"images": 28, "sha256": "a"}, "test": {"images": 8, "sha256": "b"}}
    _refuse_other_data(run, begun)  # of a new run
    run.add_launch({"command": "train_kd.py"}, begun)
    _refuse_other_data(run, dict(begun))
    with pytest.raises(
        OptionError, match=r"begun with other data \(train 28 images then and 12 now; .*--overwrite_outp"
    ):
        _refuse_other_data(run, {**begun, "train": {"images": 12, "sha256": "c"}})
    with pytest.raises(OptionError, match="test 8 images then and 8 now"):
        _refuse_other_data(run, {**begun, "test": {"images": 8, "sha256": "regrouped"}})
