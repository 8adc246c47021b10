"""Freed memory is kept on a CPU: fewer page faults, the same digits, and nothing where it cannot be."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdmri.training import job, memory
from hf_kdmri.training.options import parse_options
from hf_kdmri.training.run_folder import RunFolder
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc's allocator"
)


def python(code: str, *arguments: str, **variables: str) -> str:
    """Run a program of its own, since the allocator is the whole process's."""
    without = {"LD_PRELOAD", "GLIBC_TUNABLES"}
    environment = {k: v for k, v in os.environ.items() if k not in without and not k.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


FAULTS = """
import importlib.util, resource, sys
import torch
spec = importlib.util.spec_from_file_location("memory", "hf_kdmri/training/memory.py")
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
if sys.argv[2:] and sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
print(memory.keep_memory() if sys.argv[1] == "keep" else "not asked")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until blocks have found their places
    torch.ones(48 << 18)
before = faults()
for _ in range(10):
    torch.ones(48 << 18)
print(faults() - before)
"""


@glibc
def test_what_is_freed_is_not_faulted_in_again():
    """Ten tensors of 48 MiB, each 12,288 pages, one after the other."""
    done, faults = python(FAULTS, "keep").splitlines()
    assert done.startswith("kept") and int(faults) < 1000
    _, faults = python(FAULTS, "leave").splitlines()
    assert int(faults) > 10_000 or "always" in _huge_pages(), "then this measure is without use here"


@glibc
def test_a_limit_of_addresses_costs_the_huge_pages_only():
    done, faults = python(FAULTS, "keep", "limited").splitlines()
    assert done == "kept" and int(faults) < 1000


def _huge_pages() -> str:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.read_text().partition("[")[2].partition("]")[0] if path.is_file() else "absent"


TRAINING = """
import sys
from pathlib import Path
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.training.memory import keep_memory
from tests.tiny import tiny_trainer
if sys.argv[2] == "keep":
    assert keep_memory().startswith("kept")
trainer = tiny_trainer(
    Path(sys.argv[1]), num_train_epochs=1, augmentation=RandomViews(), dataloader_num_workers=int(sys.argv[3])
)
trainer.train()
"""


@glibc
def test_no_digit_changes(tmp_path: Path):
    for how, workers in (("keep", "1"), ("leave", "0")):  # forked workers have the same allocator
        python(TRAINING, str(tmp_path / how), how, workers)
    weights = [(tmp_path / how / "checkpoint-4" / "model.safetensors").read_bytes() for how in ("keep", "leave")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2 /usr/lib/libtcmalloc.so"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        ("MALLOC_TRIM_THRESHOLD_", "100000"),
    ],
)
@glibc
def test_an_allocator_chosen_in_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    assert memory.keep_memory().startswith(f"left alone: {name} is ")


@pytest.mark.parametrize(("system", "library"), [("darwin", ""), ("win32", ""), ("linux", "musl")])
def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch, system: str, library: str):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(memory, "ctypes", None)  # not touched
    assert memory.keep_memory() == "left alone: this is no Linux with glibc"


@pytest.mark.parametrize(("flags", "asked"), [([], True), (["--no_keep_memory"], False)])
def test_a_run_on_a_cpu_asks_for_it_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], asked: bool
):
    calls: list[str] = []
    monkeypatch.setattr(job, "keep_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(job, "run_fold", lambda *arguments: None)
    options = parse_options(["--use_cpu", "true", "--phantom_slices", "40", "--output_dir", str(tmp_path), *flags])
    job.run_job(options, RunFolder(tmp_path), state=None)  # type: ignore[arg-type]
    assert bool(calls) == asked
    assert "keep_memory" not in options.as_dict()  # the machine's own: no reason to refuse to go on with a run
