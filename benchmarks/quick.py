#!/usr/bin/env python
"""Every benchmark once, with settings that take seconds, to see that all of them run.

    python benchmarks/quick.py --out benchmarks/results

The figures are those of tiny networks and phantom slices: they say that a benchmark works and nothing about speed. Each
writes `<name>.json` and `<name>.txt` into the folder. benchmarks/README.md has the commands of the real tables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data import write_phantom_archives

FOLDER = Path(__file__).parent
SCRIPTS = {"peers": "train_step"}  # where it is not the name
TINY_PAIR = "--teacher test_resnet --student test_vit --image_size 64 --batch_size 8"
# {slices}: published zips of phantoms; {teacher}: folder of an untrained teacher; {cache}: empty
COMMANDS = {
    "train_step": f"{TINY_PAIR} --repeats 2 --threads 1 --teacher_dtype float32",
    "peers": f"{TINY_PAIR} --peers --repeats 1 --threads 1 --teacher_dtype float32 --no_memory",
    "cpu_memory": "--student test_efficientnet --image_size 64 --batch_size 8 --steps 2 --repeats 1 --threads 1",
    "loss_cost": f"{TINY_PAIR} --rounds 2 --threads 1 --teacher_dtype float32",
    "gradient_norms": "--teacher {teacher} --student_architecture test_vit --image_size 64 --batches 2 --batch_size 8 "
    "--data_dir {slices} --cache_dir {cache}",
    "read_slices": "--data_dir {slices} --repeats 1 --num_proc 1 --image_size 64 --batch_size 8 --work_dir {cache}",
    "fuzz_readers": "--count 100 --num_proc 1",
    "inference": "--model {teacher} --data_dir {slices} --cache_dir {cache} --calibration_images 16 --batch_sizes 1 "
    "--threads 1 --repeats 1 --block 0.05 --cold_repeats 0",
    "input": f"{TINY_PAIR} --images 64 --workers 0 1 --prefetch 2 --rounds 1 --steps 2 --threads 1 "
    "--teacher_dtype float32",
    "scaling": "--measure --teacher test_resnet --student test_vit --image_size 64 --batch_size 8 --rounds 2",
    "streaming": "--slices 640 --batch_size 64 --shards 4 --buffer 50",
    "end_to_end": "--epochs 2 --folds 2 --threads 1 --data_dir {slices} --cache_dir {cache} "
    "--option teacher_architecture=test_resnet --option student_architecture=test_vit "
    "--option teacher_image_size=64 --option student_image_size=64",
    "kill_anywhere": "--count 1 --kinds sigkill",
    "long_runs": "serve --model {teacher} --minutes 0.05 --clients 2",
    "serving": "--model {teacher} --picture_size 64 --clients 2 --seconds 0.5 --repeats 1",
}
NEEDS_MORE = {
    "browser": "Chromium: see its --help",
    "fuzz_page": "Chromium: see its --help",
    "ablation": "the real slices and hours: see docs/ablation.md",
    "compare_with_originals": "the papers' own repositories: see its --help",
}


def main() -> None:
    """Run all, one after the other, and fail at the end if one of them did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as work:
        places = prepare(Path(work))
        for name in arguments.only:
            options = COMMANDS[name].format(**places).split()
            start = time.monotonic()
            status = run(name, options, arguments.out)
            print(f"{name}: {'ok' if status == 0 else f'exit code {status}'} after {time.monotonic() - start:.0f} s")
            failed += [name] if status else []
    for name, reason in NEEDS_MORE.items():
        print(f"{name}: not run, it needs {reason}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; read {arguments.out}/<name>.txt")


def prepare(work: Path) -> dict[str, Path]:
    """Write what the commands name: phantoms in the published layout, and a teacher."""
    slices = write_phantom_archives(work / "slices", slices=60, patients=20, size=64)
    labels = ["meningioma", "glioma", "pituitary"]
    TeacherForImageClassification.from_timm("test_resnet", labels=labels, image_size=64).save_pretrained(
        work / "teacher"
    )
    (work / "cache").mkdir()
    return {"slices": slices, "teacher": work / "teacher", "cache": work / "cache"}


def run(name: str, options: list[str], out: Path) -> int:
    """Run one benchmark; what it prints goes to a file."""
    command = [
        sys.executable,
        str(FOLDER / f"{SCRIPTS.get(name, name)}.py"),
        *options,
        "--json",
        str(out / f"{name}.json"),
    ]
    root = str(FOLDER.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with open(out / f"{name}.txt", "w", encoding="utf-8") as log:
        return subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode


if __name__ == "__main__":
    main()
