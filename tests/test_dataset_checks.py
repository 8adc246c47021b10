"""datasets' own check of a data set (`datasets-cli test`), on the builder and on the folder that is uploaded."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets.commands import test as command

from dataset_script.convert import main as convert
from dataset_script.figshare_brain_tumor import FigshareBrainTumor
from hf_kdmri.data import published_patients
from tests.data_fixtures import good_mat


def datasets_cli_test(*arguments: str) -> None:
    """Run `datasets-cli test` in this process."""
    parser = ArgumentParser()
    command.TestCommand.register_subcommand(parser.add_subparsers())
    chosen = parser.parse_args(["test", *arguments])
    chosen.func(chosen).run()


def test_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    patients = published_patients()
    source = tmp_path / "slices"
    source.mkdir()
    for number, pid in enumerate(sorted(patients)[::5], start=1):  # the authors' folds know the published PIDs only
        (source / f"{number}.mat").write_bytes(good_mat(patients[pid].label, pid))
    # The command looks up a builder by the name of a script, which datasets no longer runs: it is given the class.
    monkeypatch.setattr(command, "dataset_module_factory", lambda path: SimpleNamespace(builder_kwargs={}))
    monkeypatch.setattr(command, "get_dataset_builder_class", lambda module: FigshareBrainTumor)
    datasets_cli_test("figshare", "--all_configs", "--data_dir", str(source), "--cache_dir", str(tmp_path / "cache"))
    said = capsys.readouterr().out
    assert said.count("Testing builder") == len(FigshareBrainTumor.BUILDER_CONFIGS)
    assert "Test successful." in said


def test_converted_folder(phantom_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "parquet"
    cache = str(tmp_path / "cache")
    convert(["--data_dir", str(phantom_dir), "--out", str(folder), "--cache_dir", cache])
    datasets_cli_test(str(folder), "--all_configs", "--cache_dir", cache)
    assert "Test successful." in capsys.readouterr().out
