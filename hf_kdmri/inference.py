"""From image files to probabilities with plain transformers: what `kdmri predict` and `kdmri evaluate` share.

Nothing here knows how the model was trained: whatever `AutoModelForImageClassification` loads will do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from hf_kdmri.data.picture_limits import PictureError
from hf_kdmri.data.pictures import decode_picture, doubt
from hf_kdmri.foreign_models import check_foreign_model
from hf_kdmri.hub_names import check_model_name
from hf_kdmri.whole_files import write_whole

TEMPERATURE_KEY = "calibration_temperature"  # in config.json; see `hf_kdmri.models.KDConfig`


@dataclass(frozen=True)
class Outcome:
    """One file: probabilities (C,) that sum to 1, or the reason why there are none; and what makes it doubtful."""

    path: Path
    probabilities: NDArray[np.float32] | None
    error: str | None = None
    warning: str | None = None


def read_image(path: str | Path) -> Image.Image:
    """Read a slice as 8-bit RGB, just as training pictures were read: see `hf_kdmri.data.pictures.decode_picture`.

    Raises:
        PictureError: no picture, damaged, several frames, far too large, pixels that are not finite, or a constant
            picture of more than 8 bits.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be opened ({error.strerror})") from error
    return decode_image(encoded)


def decode_image(encoded: bytes) -> Image.Image:
    """Do for the bytes of a file what `read_image` does for its path."""
    return decode_picture(encoded, refuse_constant=True).convert("RGB")


class ImageClassifier:
    """A model with its own preprocessing, in eval mode on one device.

    Args:
        model: Folder or Hub name.
        device: `cpu`, `cuda`, …; there is no fall-back to another.
        calibrated: Divide the logits by the temperature that `save_temperature` stored with the model. Probabilities
            change, predicted classes do not.

    Raises:
        ValueError: The model cannot be found or loaded, the device is not there, or `calibrated` and no usable
            temperature is stored.
    """

    def __init__(self, model: str, device: str = "cpu", *, calibrated: bool = False) -> None:
        transformers_logging.disable_progress_bar()
        check_model_name(model)
        try:
            check_foreign_model(model)
            self.processor = AutoImageProcessor.from_pretrained(
                model,
                backend="pil",  # the one timm_wrapper has
                trust_remote_code=False,
            )
            loaded, info = AutoModelForImageClassification.from_pretrained(
                model, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            if info["missing_keys"]:  # transformers would draw them at random and only log it
                raise ValueError(f"{len(info['missing_keys'])} weights are missing; save or download it again")
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
            raise ValueError(f"cannot load a classifier from {model!r}: {error}") from error
        try:
            self.model = loaded.eval().to(device)
        except (RuntimeError, AssertionError) as error:  # torch, for a device that is not there
            raise ValueError(f"cannot use the device {device!r}: {error}. Try --device cpu") from error
        self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        # Left as None, the logits are not touched: not even a division by 1.
        self.temperature = _stored_temperature(self.model.config, model) if calibrated else None

    def prepare(self, images: list[Image.Image]) -> Tensor:
        """Resize and normalise a batch as the model's own preprocessing says: (B, 3, H, W), on the CPU."""
        return self.processor(images, return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C) of a prepared batch, in float32 on the CPU, divided by the temperature if there is one."""
        logits = self.model(pixel_values=pixel_values.to(self.model.device)).logits.float()
        if self.temperature is not None:
            logits = logits / self.temperature
        return logits.cpu()

    def probabilities(self, images: list[Image.Image]) -> NDArray[np.float32]:
        """Classify a batch: (B, C), each row sums to 1."""
        return self.logits(self.prepare(images)).softmax(dim=-1).numpy()

    def classify_files(self, paths: Iterable[Path], batch_size: int = 16) -> Iterator[Outcome]:
        """Classify files in constant memory and in order; a file that cannot be read is reported, and work goes on.

        Args:
            paths: Image files.
            batch_size: Images in memory at once.

        Yields:
            One `Outcome` for each path.
        """
        remaining = iter(paths)
        while batch := list(islice(remaining, batch_size)):
            read: list[Image.Image | str] = []
            for path in batch:
                try:
                    read.append(read_image(path))
                except PictureError as error:
                    read.append(str(error))
            images = [image for image in read if isinstance(image, Image.Image)]
            rows = iter(self.probabilities(images) if images else ())
            for path, image in zip(batch, read, strict=True):
                if isinstance(image, Image.Image):
                    yield Outcome(path, next(rows), warning=doubt(image))
                else:
                    yield Outcome(path, None, image)


def save_temperature(model_folder: str | Path, temperature: SupportsFloat | None) -> Path:
    """Store a temperature in a model's `config.json`, which is rewritten whole; nothing else in it changes.

    The folder loads as before, with unchanged logits, in transformers and timm; `ImageClassifier(calibrated=True)`
    divides by the temperature. Train the model further and the temperature no longer fits: fit and store it anew.

    Args:
        model_folder: A saved model.
        temperature: From `hf_kdmri.evaluation.calibration.fit_temperature`, or a number; None takes it out again.

    Returns:
        Path of `config.json`.

    Raises:
        FileNotFoundError: The folder holds no `config.json`.
        ValueError: The temperature is not a finite number above 0.
    """
    path = Path(model_folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the folder of a saved model")
    value = None if temperature is None else float(temperature)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"the temperature is {value}; expected a finite number above 0")
    config = json.loads(path.read_text(encoding="utf-8"))
    config[TEMPERATURE_KEY] = value
    write_whole(path, json.dumps(config, indent=2, sort_keys=True) + "\n")  # the form in which transformers writes it
    return path


def _stored_temperature(config: PreTrainedConfig, model: str) -> float:
    value = getattr(config, TEMPERATURE_KEY, None)
    if value is None:
        raise ValueError(
            f"{model!r} has no {TEMPERATURE_KEY} in its config.json. Fit one on validation slices "
            "(hf_kdmri.evaluation.calibration.fit_temperature) and store it with hf_kdmri.inference.save_temperature, "
            "or ask for uncalibrated probabilities (calibrated=False, or without --calibrated)"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{TEMPERATURE_KEY} in the config.json of {model!r} is {value!r}; expected a finite number above 0"
        )
    return float(value)
