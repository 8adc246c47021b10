"""Write what a push would send into a folder instead: a model repository to keep beside the code or to hand on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from hf_kdmri.hub.card_text import PLACEHOLDER
from hf_kdmri.hub.contents import Content
from hf_kdmri.hub.release import plan_release
from hf_kdmri.hub.samples import FOLDER
from hf_kdmri.inference import ImageClassifier
from hf_kdmri.whole_files import write_whole

WEIGHTS, INT8 = "model.safetensors", "onnx/model_int8.onnx"
PREDICTIONS = f"{FOLDER}/predictions.json"
HALF_TOLERANCE = 0.005  # of a probability
_NO_NAME = "without/a-name"


class PackError(RuntimeError):
    """The folder cannot be written, or half precision changes what the model says."""


def pack_student(
    run: str | Path,
    out: str | Path,
    repo_id: str | None = None,
    *,
    half: bool = False,
    dataset_id: str | None = None,
    stage: str = "student",
) -> dict[str, int]:
    """Write a finished run's student as a model repository: weights, card, results, figures, samples, ONNX file.

    An int8 file at `RUN/student/onnx/model_int8.onnx` (`kdmri export --int8`) is taken instead of the float32 one.
    The sample pictures' probabilities are written beside them, so that anyone can see whether the weights still say
    what they said here.

    Args:
        run: Run folder of one fold.
        out: Folder to write; replaced if it is there and holds a packed student.
        repo_id: `user/name` that the card's snippets name; None leaves the stand-in for a folder there.
        half: Store the weights in float16; they are loaded into float32 as before.
        dataset_id: `user/name` of the data set on the Hub.
        stage: "student", or "baseline" for the one without a teacher, whose card has to be in `RUN/baseline`.

    Returns:
        Size in bytes by file.

    Raises:
        FileNotFoundError: The run is not finished or has several folds.
        PackError: `out` holds something else, the int8 file is older than the weights, or float16 moves a probability
            by more than `HALF_TOLERANCE` or cannot be checked for want of sample pictures.
    """
    run, out = Path(run), Path(out)
    if out.exists() and any(out.iterdir()) and not (out / PREDICTIONS).is_file():
        raise PackError(f"{out} holds something that was not packed here; give another --out, or empty it")
    int8 = run / stage / INT8
    if int8.is_file() and int8.stat().st_mtime < (run / stage / WEIGHTS).stat().st_mtime:
        raise PackError(f"{int8} is older than the weights beside it: export it again, or remove it")
    plan = plan_release(
        run, repo_id or _NO_NAME, teacher=False, onnx=not int8.is_file(), dataset_id=dataset_id, stage=stage
    )
    files = {name: content for name, content in plan.student.files.items() if name != PREDICTIONS}
    if repo_id is None and isinstance(card := files.get("README.md"), bytes):
        text = card.decode("utf-8").replace(f"hf-hub:{_NO_NAME}", f"local-dir:{PLACEHOLDER}")
        files["README.md"] = text.replace(_NO_NAME, PLACEHOLDER).encode()
    if int8.is_file():
        files[INT8] = int8
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as temporary:
        new = Path(temporary) / "packed"
        _write(files, new)
        probabilities = _probabilities(new)
        if half:
            _halve(new / WEIGHTS)
            probabilities = _checked_halves(probabilities, _probabilities(new))
        (new / FOLDER).mkdir(exist_ok=True)
        write_whole(new / PREDICTIONS, json.dumps(probabilities, indent=2) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(new, out)
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}


def _write(files: Mapping[str, Content], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def _checked_halves(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, list[float]]:
    if not before:
        raise PackError("there are no sample pictures to see on what float16 changes: pack without --half")
    moved = max(abs(a - b) for name in before for a, b in zip(after[name], before[name], strict=True))
    if moved > HALF_TOLERANCE:
        raise PackError(
            f"float16 moves a probability of the sample pictures by {moved:.3f}, more than {HALF_TOLERANCE}: pack "
            "without --half"
        )
    return after


def _probabilities(folder: Path) -> dict[str, list[float]]:
    """What the model of a folder says of each of its sample pictures, by file name."""
    pictures = sorted((folder / FOLDER).glob("*.png"))
    if not pictures:  # a model of other classes than phantoms have
        return {}
    classifier = ImageClassifier(str(folder))
    rows = classifier.probabilities([Image.open(path).convert("RGB") for path in pictures])
    return {path.name: [round(float(value), 4) for value in row] for path, row in zip(pictures, rows, strict=True)}


def _halve(path: Path) -> None:
    """Store floating-point tensors of a safetensors file in float16; running statistics as well."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    halved = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    for name, tensor in halved.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PackError(f"{name} does not fit into float16: pack without --half")
    save_file(halved, path, metadata=metadata)
