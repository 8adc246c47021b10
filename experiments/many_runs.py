#!/usr/bin/env python
"""Train the many models of a plan side by side, on one GPU or CPU, until they are done or the time is.

    python experiments/many_runs.py experiments/plans/folds.yaml --out RUNS --data_dir DIR --jobs 14 --seconds 425

A plan is a YAML file: `options` shared by all, and `runs`, each with a `name`, a `stage` (teacher, baseline or
student), `options` of its own, the name of the run that is its `teacher` (of any stage: a student may teach another),
of the run that it `goes_on_from` (whose weights it starts with, of the same network), and the `folds` and `seeds` it is
repeated over; `{fold}` and `{seed}` in names are filled in. `split: all` instead of a fold trains on everything but
fold 0's validation slices. `like: OTHER.yaml` takes over all but the runs of a plan in the same folder; what is said
again counts.

Each model is trained by the same functions as by `train_kd.py`, and predicts afterwards: the validation slices, as they
are and, unless the plan says `altered: false`, altered (`altered_views.py`); where it says `test: true`, the test
slices as well. Runs are begun in the order of the plan; what is finished is not done again, so the next plan can go on
from the models of the last; one that was not asked about the test slices yet is asked then, and not trained again.
What was broken off begins anew, or at its last checkpoint if the plan has any written (`save_strategy`). The command
may be given again while it runs, for other runs of the same plan or with more jobs.

For each run `RUNS/NAME` holds the model, its history and the code and versions that made it, `RUNS/NAME.npz` the
predictions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from accelerate import PartialState
from altered_views import VIEW_SIZE, altered_views
from filelock import FileLock, Timeout

from hf_kdmri import TeacherForImageClassification
from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.views import prepare_views
from hf_kdmri.models import TimmClassifier, prepare_pixels
from hf_kdmri.training.environment import describe_environment
from hf_kdmri.training.inputs import RunData, prepare_data, training_views, views_of
from hf_kdmri.training.options import RunOptions, parse_options
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import STAGES, build_student, build_teacher, train_stage
from hf_kdmri.whole_files import write_whole

NEEDED = ("teacher", "goes_on_from")  # other runs, whose models a run needs
NAMED = ("name", *NEEDED)
MADE_BY = "made_by.json"  # code, versions and machine, in a run's folder
_FORK = multiprocessing.get_context("fork")  # all that is imported is there at once
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    """Prepare the data, start the workers, wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--data_dir", required=True, help="folder with the published zips")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--jobs", type=int, default=2, help="models trained side by side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each of them, on a CPU (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help='runs with such names alone, e.g. "*-f0*"'
    )
    parser.add_argument("--seconds", type=float, help="stop after this long, finished or not")
    parser.add_argument("--prepare_only", action="store_true", help="read and resize the data, and stop")
    arguments = parser.parse_args()
    runs = list(planned(arguments.plan, arguments.only))
    if not runs:
        parser.error(f"no run of {arguments.plan} has such a name: {' '.join(arguments.only)}")
    names = {run["name"] for run in runs}
    for run in runs:
        for other in needed_by(run):
            if other not in names and model_of(other, arguments.out) is None:
                parser.error(f"{run['name']} needs {other}, which {arguments.out} has not: add it to --only as well")
        weights = run["options"].get("teacher_weights" if run["stage"] == "teacher" else "student_weights")
        if weights is not None and not Path(weights).is_file() and model_of(run["name"], arguments.out) is None:
            parser.error(
                f"{run['name']} starts from {weights}, and there is no such file: put it there, or name another"
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.prepare_only:
        prepare(runs, arguments)
        return
    begun = time.monotonic()
    # Without sight of a GPU: whoever has looked at one cannot fork. Neither does this process; only the workers do.
    subprocess.run([sys.executable, *sys.argv, "--prepare_only"], check=True, env={**os.environ, **_NO_GPU})
    print(f"data prepared, {time.monotonic() - begun:.0f} s", flush=True)
    asked = time.time()
    workers = [_FORK.Process(target=work, args=(arguments, asked)) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(None if arguments.seconds is None else max(0.0, arguments.seconds - (time.monotonic() - begun)))
    for worker in workers:
        worker.kill()
    finished = sum(is_finished(run["name"], arguments.out, answered(run)) for run in runs)
    print(f"{finished} of {len(runs)} runs in {time.monotonic() - begun:.0f} s")


def planned(plan: Path, only: Sequence[str] = ("*",)) -> Iterator[dict[str, Any]]:
    """The runs of a plan, one for each fold and seed, in order; of these, the ones whose name fits a pattern."""
    told = read_plan(plan)
    for run in told["runs"]:
        for seed in run.get("seeds", [42]):
            for fold in run.get("folds", [0]):
                names = {key: run[key].format(fold=fold, seed=seed) for key in NAMED if key in run}
                options = {**told.get("options", {}), **run.get("options", {}), "fold": fold, "seed": seed}
                of_plan = {"test": told.get("test", False), "altered": told.get("altered", True)}
                if any(fnmatch(names["name"], pattern) for pattern in only):
                    yield {**run, **of_plan, **names, "options": options}


def read_plan(plan: Path) -> dict[str, Any]:
    """A plan as it is written, with what it takes over from another one."""
    told = yaml.safe_load(plan.read_text(encoding="utf-8"))
    if "like" not in told:
        return told
    other = read_plan(plan.parent / told["like"])
    return {**other, **told, "options": {**other.get("options", {}), **told.get("options", {})}}


def prepare(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Read and resize everything once, before many processes ask for it at the same time."""
    splits, views = {}, {}
    for run in runs:
        options = run_options(run, arguments)
        drawn_by = options.training.seed if options.data.split == "random_slices" else None
        of_split = (options.data.split, options.data.fold, drawn_by)
        splits[of_split] = run, None, None, None
        teacher, student = options.model.teacher_image_size, options.model.student_image_size
        size = teacher if run["stage"] == "teacher" else student
        tested = ("validation", "test") if run["test"] else ("validation",)
        sizes = (size, VIEW_SIZE) if run["altered"] else (size,)
        wanted = {(split, side, "image") for split in tested for side in sizes}
        training = max(size, teacher if run["stage"] == "student" else 0)
        kind = "all" if run.get("split") == "all" else "train"
        wanted |= {(kind, training, "image")} | ({(kind, training, "mask")} if options.training.needs_masks else set())
        for one in wanted:
            views[of_split, one] = run, *one
    with ProcessPoolExecutor(arguments.jobs, _FORK, datasets.disable_progress_bars) as pool:
        for tasks in (splits, views):
            list(pool.map(prepare_one, [(arguments, *task) for task in tasks.values()]))


def prepare_one(task: tuple[argparse.Namespace, dict[str, Any], str | None, int, str]) -> None:
    """Read one split, or resize one column of it."""
    arguments, run, split, size, column = task
    options = run_options(run, arguments)
    slices = load_slices(
        data_dir=options.data.data_dir,
        cache_dir=options.data.cache_dir,
        split=options.data.split,
        fold=options.data.fold,
        seed=options.training.seed,
    )
    if split == "all":
        slices["all"] = datasets.concatenate_datasets([slices["train"], slices["test"]])
    if split is not None:
        prepare_views(slices[split], size, image_column=column)


def run_options(run: dict[str, Any], arguments: argparse.Namespace) -> RunOptions:
    """The run's options, its configuration written into its folder."""
    folder = arguments.out / run["name"]
    folder.mkdir(exist_ok=True)
    config = folder / "plan.yaml"
    config.write_text(yaml.safe_dump(run["options"]), encoding="utf-8")
    flags = ["--config", str(config), "--output_dir", str(folder), "--data_dir", arguments.data_dir]
    return parse_options([*flags, *(["--cache_dir", arguments.cache_dir] if arguments.cache_dir else [])])


def work(arguments: argparse.Namespace, asked: float) -> None:
    """Take one run after the other until none is left that did not fail since `asked` (seconds since 1970)."""
    torch.set_num_threads(arguments.threads)
    runs = list(planned(arguments.plan, arguments.only))
    while True:
        waiting = False
        for run in runs:
            if is_finished(run["name"], arguments.out, answered(run)) or has_failed(run["name"], arguments.out, asked):
                continue
            missing = [other for other in needed_by(run) if model_of(other, arguments.out) is None]
            if missing:
                waiting = waiting or not any(has_failed(other, arguments.out, asked) for other in missing)
                continue
            with contextlib.suppress(Timeout), claim_of(run["name"], arguments.out):
                if not is_finished(run["name"], arguments.out, answered(run)):  # by whoever had it until now
                    attempt(run, arguments)
                    break
        else:
            if not waiting:
                return
            time.sleep(1)


def needed_by(run: dict[str, Any]) -> list[str]:
    """Names of the runs whose models a run needs."""
    return [run[key] for key in NEEDED if key in run]


def claim_of(name: str, out: Path) -> FileLock:
    """Held by whoever does a run, of this command or of another on the same folder; gone with its holder."""
    folder = out / name
    folder.mkdir(exist_ok=True)
    return FileLock(folder / "claim.lock", blocking=False)


def answered(run: dict[str, Any]) -> tuple[str, ...]:
    """The splits that a run's model is asked about; not the test slices if it was trained on them."""
    return ("validation", "test") if run["test"] and run.get("split") != "all" else ("validation",)


def is_finished(name: str, out: Path, splits: Sequence[str] = ()) -> bool:
    """Whether a run's predictions are there, of all these splits."""
    with contextlib.suppress(FileNotFoundError), np.load(out / f"{name}.npz") as said:
        return all(f"{split} clean" in said for split in splits)
    return False


def model_of(name: str, out: Path) -> Path | None:
    """The folder of a run's model, once it is trained."""
    folder = RunFolder(out / name)
    return next((folder.model_folder(stage) for stage in STAGES if folder.has_model(stage)), None)


def has_failed(name: str, out: Path, since: float) -> bool:
    """Whether a run was tried since then (seconds since 1970), in vain."""
    with contextlib.suppress(FileNotFoundError):
        return (out / name / "failed").stat().st_mtime >= since
    return False


def attempt(run: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Do a run and say what came of it."""
    begun = time.monotonic()
    try:
        result = one_run(run, arguments)
        print(f"{run['name']}: {result}, {time.monotonic() - begun:.0f} s", flush=True)
    except Exception:
        (arguments.out / run["name"] / "failed").touch()
        print(f"{run['name']}: FAILED\n{traceback.format_exc()}", flush=True)


def one_run(run: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Train one model, unless it is there, and let it predict.

    Returns:
        What to say of it: validation accuracies.
    """
    folder, options = RunFolder(arguments.out / run["name"]), run_options(run, arguments)
    state, stage = PartialState(), run["stage"]
    with open(folder.path / "log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        data = prepare_data(options, folder, state)
        if run.get("split") == "all":
            data = with_test_slices(data)
        model = trained(stage, run, options, data, folder, state, arguments.out)
    model.to(options.training.device).eval()  # type: ignore[arg-type]  # transformers wraps it without `self`
    kept: dict[str, np.ndarray] = {}
    for split in answered(run):
        kept |= {
            f"{split} {name}": values
            for name, values in predictions(
                model, data.splits[split], altered_of(split, data, options, arguments.out) if run["altered"] else {}
            ).items()
        }
    keep_predictions(kept, arguments.out, run["name"])
    right = {
        name: (kept[f"validation {name}"].argmax(-1) == kept["validation label"]).mean()
        for name in ("clean", "cropped", "other look")
        if f"validation {name}" in kept
    }
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in right.items())


def keep_predictions(said: dict[str, np.ndarray], out: Path, name: str) -> None:
    """Write what a run's model said, whole or not at all: from then on the run is finished."""
    written = out / name / "predictions.npz"
    np.savez_compressed(written, **said)  # type: ignore[arg-type]  # numpy's stub: a name might be `allow_pickle`
    written.replace(out / f"{name}.npz")


def altered_of(split: str, data: RunData, options: RunOptions, out: Path) -> dict[str, list[torch.Tensor]]:
    """The altered views of a split, made by whoever needs them first and kept for the others."""
    seed = options.training.seed if options.data.split == "random_slices" else ""
    file = out / f"views-{options.data.split}{seed}-{options.data.fold}-{split}.npy"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            views = prepare_views(data.splits[split], VIEW_SIZE)
            pictures = torch.from_numpy(np.stack([views.view(row) for row in range(len(views))]))
            altered = altered_views(pictures)
            np.save(file, torch.stack([*altered["cropped"], *altered["other look"]]).numpy())
    cropped, *looks = torch.from_numpy(np.load(file))
    return {"cropped": [cropped], "other look": looks}


def with_test_slices(data: RunData) -> RunData:
    """Train on the test slices, too: for a model to give away after its recipe was tested."""
    train = datasets.concatenate_datasets([data.splits["train"], data.splits["test"]])
    return RunData(datasets.DatasetDict({**data.splits, "train": train}), data.source, data.split, data.fold, data.own)


def trained(
    stage: str,
    run: dict[str, Any],
    options: RunOptions,
    data: RunData,
    folder: RunFolder,
    state: PartialState,
    out: Path,
) -> TimmClassifier:
    """The run's model, trained or taken from its folder."""
    if folder.has_model(stage):
        return TeacherForImageClassification.from_pretrained(folder.model_folder(stage))
    model = (build_teacher if stage == "teacher" else build_student)(options, data.labels)
    if "goes_on_from" in run:
        earlier = TimmClassifier.from_pretrained(model_of(run["goes_on_from"], out))
        model.load_state_dict(earlier.state_dict())
    teacher, size = None, model.image_size
    if stage == "student":
        teacher = TeacherForImageClassification.from_pretrained(model_of(run["teacher"], out))
        size = max(size, teacher.image_size)
    views = training_views(data, size, options, state)
    validation = views_of(data.splits["validation"], model.image_size, options, state)
    train_stage(stage, model, teacher, views, validation, options, folder)
    write_whole(folder.path / MADE_BY, json.dumps(describe_environment(), indent=1) + "\n")
    return model


def predictions(model: TimmClassifier, split: datasets.Dataset, altered: dict[str, Any]) -> dict[str, np.ndarray]:
    """Probabilities: `clean` and `cropped` (N, K), `other look` (3, N, K); with `label`, `slice` and `group`."""
    said: dict[str, np.ndarray] = {
        "label": np.asarray(split["label"][:]),
        "slice": np.asarray(split["slice"][:]),
        "group": np.asarray(split["patient_group"][:]),
    }
    for name, looks in {**altered, "clean": [clean_pictures(model, split)]}.items():
        answers = np.stack([probabilities(model, look) for look in looks])
        said[name] = answers if name == "other look" else answers[0]
    return said


def clean_pictures(model: TimmClassifier, split: datasets.Dataset) -> torch.Tensor:
    """(N, C, H, W) uint8 slices as they are, resized by Pillow, as the model's own processor does."""
    exact = prepare_views(split, model.image_size)
    return torch.from_numpy(np.stack([exact.view(row) for row in range(len(exact))]))


@torch.no_grad()
def probabilities(model: TimmClassifier, pictures: torch.Tensor) -> np.ndarray:
    """(N, K) of pictures of the model's size."""
    said = []
    for part in pictures.split(128):
        pixels = prepare_pixels(
            part.to(model.device), image_size=model.image_size, mean=model.pixel_mean, std=model.pixel_std
        )
        said.append(model(pixels).logits.float().softmax(1).cpu().numpy())
    return np.concatenate(said)


if __name__ == "__main__":
    main()
