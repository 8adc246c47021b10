"""From the start of a process to its first prediction, in each runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import spread

COLD = {
    "transformers, PyTorch eager": ("transformers", "folder"),
    "transformers, PyTorch compiled": ("transformers-compiled", "folder"),
    "torch.export": ("torch.export", "pt2"),
    "ONNX float32": ("onnx", "onnx"),
    "ONNX int8": ("onnx", "int8"),
    "OpenVINO float32": ("openvino", "xml"),
    "OpenVINO int8": ("openvino", "xml int8"),
}


def measure_cold_start(files: dict[str, Any], scratch: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Time the start of a process to its first prediction, a new process each time, the runtimes in turn.

    The image is a grey PNG of 512 pixels. Libraries and models come from the disk's cache, which a round that does not
    count has filled; the compiler's own cache is empty each time.

    Args:
        files: of each kind that `COLD` names.
        scratch: folder for the image and the compiler's cache.
        threads: of each process.
        repeats: processes of each runtime; 0 for none.

    Returns:
        For each runtime the spread of `seconds`, and of `importing` and `loading` within them.
    """
    image = scratch / "slice.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)).save(image)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in COLD}
    for repeat in range(repeats + 1 if repeats else 0):
        for name, (runtime, file) in COLD.items():
            environment = os.environ | {
                "OMP_NUM_THREADS": str(threads),
                "TORCHINDUCTOR_CACHE_DIR": str(scratch / f"inductor-{repeat}"),
                "HF_HUB_OFFLINE": "1",
            }
            command = [sys.executable, str(Path(__file__).with_name("first_prediction.py")), runtime, str(files[file])]
            start = time.time()
            done = subprocess.run([*command, str(image)], env=environment, capture_output=True, text=True, check=True)
            moments = json.loads(done.stdout)
            if repeat:  # the first round brings the libraries' files into memory
                rounds[name].append(
                    {
                        "seconds": moments["predicted"] - start,
                        "importing": moments["imported"] - start,
                        "loading": moments["loaded"] - moments["imported"],
                    }
                )
    return {name: {key: spread([one[key] for one in rows]) for key in rows[0]} for name, rows in rounds.items() if rows}
