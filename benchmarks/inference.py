#!/usr/bin/env python
"""How fast the student is in each runtime, and how right: PyTorch, ONNX and OpenVINO, in float32, bfloat16 and int8.

    python benchmarks/inference.py --model runs/figshare/student --data_dir DIR_WITH_THE_ZIPS --json inference.json

Images per second and the 50th and 95th percentile of the time of a call, at each batch size and number of threads. The
runtimes are timed in turn, round after round, a block of calls each, so that a machine whose speed drifts changes all
of them alike; the ratio to PyTorch eager is taken round by round, from the median call of each block. On a busy machine
calls shorter than a time slice of the scheduler gain and longer ones lose; the ratio of the fastest calls, beside it,
then says more, and nothing says enough. Input is a prepared tensor: decoding and resizing are the same for all and not
counted.

Accuracy stands beside each, on the fold's test slices or on `--images` with `--labels`; int8 is calibrated on training
slices (`--data_dir`) or on `--calibration`, or is a file of yours (`--int8`). Without labelled images there is no
accuracy, and int8 is calibrated on generated phantoms: good for timing, for nothing else. `--model` missing, the
student is an untrained one.

Then the time from the start of a process to its first prediction (cold_start.py). benchmarks/README.md holds the tables
of one run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cold_start import measure_cold_start
from inference_runtimes import EAGER, NAMES, Runtime, build_runtimes
from numpy.typing import NDArray
from timing import circumstances, shown, spread

from hf_kdmri import StudentForImageClassification
from hf_kdmri.data import write_phantom_archives
from hf_kdmri.data.loading import load_slices
from hf_kdmri.evaluation.report import markdown_table
from hf_kdmri.export import export_onnx, export_openvino, export_torch, quantize_onnx
from hf_kdmri.export.images import FileImages, SplitImages, find_export_images
from hf_kdmri.export.source import SourceModel

LABELS = ["meningioma", "glioma", "pituitary"]


def main() -> None:
    """Measure, print tables, write JSON."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        files = write_models(arguments, Path(scratch))
        images = load_images(arguments, Path(scratch), files["source"].labels)
        report = None
        if arguments.int8 is None:
            report = quantize_onnx(files["onnx"], files["int8"], images["calibration"], max_drop=None)
        some = [image for image, _ in zip(images["calibration"], range(4), strict=False)]
        files["xml"] = export_openvino(files["folder"], Path(scratch) / "float32.xml", onnx_file=files["onnx"])
        files["xml int8"] = export_openvino(
            files["folder"], Path(scratch) / "int8.xml", onnx_file=files["int8"], images=some
        )
        files["pt2"] = export_torch(files["folder"], Path(scratch) / "student.pt2")
        result: dict[str, Any] = {
            "model": {"architecture": files["source"].config.architecture, "input_size": files["source"].input_size},
            "calibration_images": report and report.calibration_images,
            "bytes": {name: files[name].stat().st_size for name in ("onnx", "int8")},
            "accuracy": measure_accuracy(arguments, files, images["labelled"]),
            "timings": [
                measure_speed(arguments, files, threads, batch)
                for threads in arguments.threads
                for batch in arguments.batch_sizes
            ],
            "cold_start": measure_cold_start(files, Path(scratch), arguments.threads[0], arguments.cold_repeats),
            **circumstances(arguments, torch.device("cpu")),
        }
    result["settings"] = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    result["device"] = processor_name()
    result["versions"] |= {name: version(name) for name in ("onnxruntime", "openvino")}
    print_tables(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: an untrained student)")
    parser.add_argument("--student", default="mobilenetv4_conv_small", help="timm name of it (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="of an untrained one (default: %(default)s)")
    parser.add_argument(
        "--data_dir", type=Path, help="the published zips: training slices calibrate, test slices score"
    )
    parser.add_argument("--cache_dir", type=Path, help="where the prepared slices are kept")
    parser.add_argument("--fold", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of labelled images, instead of --data_dir")
    parser.add_argument("--labels", type=Path, help="CSV with their files and labels")
    parser.add_argument("--calibration", type=Path, help="folder of training images, with --images")
    parser.add_argument("--calibration_images", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--int8", type=Path, help="an int8 ONNX file of the model (default: it is quantised anew)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="(default: 1 32)")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="(default: 2 1)")
    parser.add_argument(
        "--runtimes", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help="(default: all)"
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--block", type=float, default=0.3, help="seconds of each runtime in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--cold_repeats", type=int, default=5, help="processes of each runtime, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    if EAGER not in arguments.runtimes:
        arguments.runtimes.insert(0, EAGER)  # what the ratios refer to
    return arguments


def write_models(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The student's folder and ONNX file."""
    folder = arguments.model
    if folder is None:
        torch.manual_seed(0)
        folder = scratch / "student"
        StudentForImageClassification.from_timm(
            arguments.student, labels=LABELS, image_size=arguments.image_size
        ).save_pretrained(folder)
    return {
        "folder": folder,
        "source": SourceModel.load(folder),
        "onnx": export_onnx(folder, scratch / "float32.onnx"),
        "int8": arguments.int8 or scratch / "int8.onnx",
    }


def load_images(arguments: argparse.Namespace, scratch: Path, labels: list[str]) -> dict[str, Any]:
    """What int8 is calibrated on, and labelled images that no choice was made on, or None."""
    data_dir, cache_dir = arguments.data_dir, arguments.cache_dir
    is_phantom = data_dir is None and arguments.calibration is None
    if is_phantom:
        data_dir, cache_dir = write_phantom_archives(scratch / "phantoms"), scratch / "cache"
    given = find_export_images(
        labels if not is_phantom else LABELS,
        calibration=arguments.calibration,
        count=arguments.calibration_images,
        data_dir=data_dir,
        cache_dir=cache_dir,
        fold=arguments.fold,
        label_file=arguments.labels,
        images=arguments.images,
    )
    labelled: Any = given.labelled if isinstance(given.labelled, FileImages) else None
    if labelled is None and arguments.data_dir is not None:
        labelled = SplitImages(load_slices(data_dir=data_dir, cache_dir=cache_dir, fold=arguments.fold)["test"])
    return {"calibration": given.training, "labelled": labelled}


def measure_accuracy(arguments: argparse.Namespace, files: dict[str, Any], labelled: Any) -> dict[str, Any] | None:
    """Accuracy of each runtime in per cent, with the points it lost against eager and the share of equal classes."""
    if labelled is None:
        return None
    source, truth = files["source"], np.asarray(labelled.labels)
    pixels = np.concatenate([source.prepare([image]).numpy() for image in labelled])
    runtimes = build_runtimes(arguments.runtimes, source, files["onnx"], files["int8"], arguments.threads[0])
    classes = {name: predict_classes(runtime, pixels) for name, runtime in runtimes.items()}
    accuracy = {name: 100 * float((predicted == truth).mean()) for name, predicted in classes.items()}
    return {
        name: {
            "accuracy": accuracy[name],
            "drop": accuracy[EAGER] - accuracy[name],
            "agreement": float((classes[name] == classes[EAGER]).mean()),
            "images": len(truth),
        }
        for name in classes
    }


def predict_classes(runtime: Runtime, pixels: NDArray[np.float32]) -> NDArray[np.integer]:
    """(N,), one image at a time: no runtime has to be built for a last, smaller batch."""
    return np.array([runtime.run(pixels[row : row + 1]).argmax() for row in range(len(pixels))])


def measure_speed(arguments: argparse.Namespace, files: dict[str, Any], threads: int, batch: int) -> dict[str, Any]:
    """Time every runtime in turn, round after round."""
    runtimes = build_runtimes(arguments.runtimes, files["source"], files["onnx"], files["int8"], threads)
    pixels = np.random.default_rng(0).standard_normal((batch, *files["source"].input_size), dtype=np.float32)
    for runtime in runtimes.values():  # allocator, kernel choice, compiler
        for _ in range(3):
            runtime.run(pixels)
    for _ in range(arguments.repeats):
        for runtime in runtimes.values():
            runtime.time_block(pixels, arguments.block, warmup=2)
    # The median call of each round: a call that another process held up is no property of the runtime.
    medians = {name: np.array([np.median(block) for block in runtime.latencies]) for name, runtime in runtimes.items()}
    figures = {}
    for name, runtime in runtimes.items():
        milliseconds = 1e3 * np.concatenate(runtime.latencies)
        figures[name] = {
            "images_per_second": spread((batch / medians[name]).tolist()),
            "p50_ms": float(np.percentile(milliseconds, 50)),
            "p95_ms": float(np.percentile(milliseconds, 95)),
            "calls": len(milliseconds),
            "times_eager": spread((medians[EAGER] / medians[name]).tolist()),
            "times_eager_fastest": float(
                np.min(np.concatenate(runtimes[EAGER].latencies)) / np.min(milliseconds / 1e3)
            ),
        }
    return {"threads": threads, "batch_size": batch, "figures": figures}


def processor_name() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people, as Markdown."""
    model, settings, accuracy = result["model"], result["settings"], result["accuracy"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"{model['architecture']}, {model['input_size'][-1]} px; {result['device']}; {versions}")
    for timing in result["timings"]:
        title = f"batch {timing['batch_size']}, {timing['threads']} threads, {settings['repeats']} rounds"
        heading = [title, "images / s", "p50 ms", "p95 ms", "times eager (min–max)", "of the fastest calls"]
        if accuracy:
            heading += ["accuracy, %", "drop, points", "same class, %"]
        lines = []
        for name, figure in timing["figures"].items():
            line = [
                name,
                f"{figure['images_per_second']['median']:.0f}",
                f"{figure['p50_ms']:.2f}",
                f"{figure['p95_ms']:.2f}",
                shown(figure["times_eager"]),
                f"{figure['times_eager_fastest']:.2f}",
            ]
            if accuracy:
                scores = accuracy[name]
                line += [f"{scores['accuracy']:.1f}", f"{scores['drop']:.2f}", f"{100 * scores['agreement']:.1f}"]
            lines.append(line)
        print("\n" + markdown_table(heading, lines))
    if result["cold_start"]:
        title = f"first prediction, {settings['threads'][0]} threads, {settings['cold_repeats']} processes"
        lines = [
            [name, shown(figure["seconds"]), *(f"{figure[key]['median']:.2f}" for key in ("importing", "loading"))]
            for name, figure in result["cold_start"].items()
        ]
        print(markdown_table([title, "s (min–max)", "of it importing", "loading"], lines))


if __name__ == "__main__":
    main()
