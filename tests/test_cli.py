"""The command line as a whole, and its commands that do not classify."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_kdmri.cli import app
from tests.cli_cases import run, save_model
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "student")


def test_export_and_its_failure(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hf_kdmri.export.onnx_file._EXTRA", ("onnx_is_not_here",))
    result = run("export", model, "--to", "onnx", "--out", tmp_path / "s.onnx")
    assert result.exit_code == 1
    assert "pip install 'hf_kdmri[onnx]'" in result.stderr


def test_push_dry_run_lists_the_students_files(model) -> None:
    result = run("push", model.parent, "--to", "jane/kdmri-student", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "config.json" in result.stdout
    assert "bytes in 2 files" in result.stdout
    assert "Dry run: nothing was sent to jane/kdmri-student" in result.stdout
    assert "Card: there is no README.md" in result.stdout
    (model / "README.md").write_text("---\npipeline_tag: image-classification\nlibrary_name: timm\n---\n")
    assert "README.md was checked" in run("push", model, "--to", "jane/x", "--dry-run").stdout
    (model / "README.md").write_text("---\nlibrary_name: timm\n---\n")
    refused = run("push", model, "--to", "jane/x", "--dry-run")
    assert refused.exit_code == 2 and "breaks the Hub's rules" in refused.stderr and refused.stdout == ""
    (model / "README.md").unlink()
    assert run("push", model.parent, "--to", "nowhere", "--dry-run").exit_code == 2
    assert "config.json and model.safetensors missing" in run("push", model.parent.parent, "--to", "j/x").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell) -> None:
    def complete(words: str) -> str:
        environment = {"_KDMRI_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
        return CliRunner().invoke(app, [], prog_name="kdmri", env=environment).stdout

    assert "predict" in complete("kdmri pre") and "evaluate" not in complete("kdmri pre")
    assert "--max-body" in complete("kdmri serve --max")
    script = CliRunner().invoke(app, [], prog_name="kdmri", env={"_KDMRI_COMPLETE": f"source_{shell}"}).stdout
    assert "kdmri" in script and f"complete_{shell}" in script
    assert "--install-completion" in run("--help").stdout and "--show-completion" in run("--help").stdout


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve", "push", "report", "compare"])
def test_every_command_has_an_example(command) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: kdmri {command}" in " ".join(result.stdout.split())
    assert "Exit codes: 0" in run("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, hf_kdmri.cli; print([m for m in ('torch', 'transformers', 'timm', 'numpy') if m in sys.modules])"
    )
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
    assert time.perf_counter() - start < 10


def test_a_wrong_choice_is_refused_in_plain_words() -> None:
    result = run("predict", "x.png", "--model", "y", "--format", "xls")
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert "Invalid value for '--format': 'xls' is not one of" in words and "Value error" not in words


@pytest.mark.parametrize(
    "command",
    [
        ("export", "jane/nothing", "--out", "x.onnx"),
        ("space", "page", "--model", "jane/nothing"),
        ("evaluate", "jane/nothing", "--images", ".", "--labels", "pyproject.toml"),
        ("push", "nowhere", "--to", "jane/nothing", "--dry-run"),
    ],
)
def test_slow_commands_say_what_they_do_and_fail_before_heavy_imports(command) -> None:
    code = (
        "import sys\nfrom hf_kdmri.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(end.code, [m for m in ('torch', 'transformers', 'timm', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "2 []", done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("kdmri: ") and first.endswith(" …")
    assert second.startswith("kdmri: there is no folder 'jane/nothing'") or second.startswith("kdmri: nowhere is no")
