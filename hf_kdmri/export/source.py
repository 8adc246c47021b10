"""The model that is exported, in PyTorch, and what a file made of it has to say about it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel, TimmWrapperImageProcessor
from transformers.utils import logging as transformers_logging

import hf_kdmri
from hf_kdmri.foreign_models import check_foreign_model
from hf_kdmri.hub_names import check_model_name
from hf_kdmri.inference import TEMPERATURE_KEY

INPUT, OUTPUT = "pixel_values", "logits"
NOTICE = "Research use only, not a medical device."


class LogitsOnly(nn.Module):
    """The model with a tensor, not a `ModelOutput`, as its result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixel values (B, 3, H, W) to logits (B, C)."""
        return self.model(pixel_values=pixel_values).logits


@contextmanager
def tracing() -> Iterator[None]:
    """What tracing a model for export needs around it."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # timm's EfficientViT keeps its attention biases per device, outside the buffers; the comparison of logits that
        # follows every export tells whether that did harm.
        warnings.filterwarnings("ignore", message=".*were assigned during export", category=UserWarning)
        yield


@dataclass(frozen=True)
class SourceModel:
    """A timm_wrapper classifier in eval mode on the CPU, in float32.

    Args:
        model: the classifier.
        name: folder or Hub name that it came from.
    """

    model: PreTrainedModel
    name: str

    @classmethod
    def load(cls, model: str | Path) -> SourceModel:
        """Load it from a folder or the Hub.

        Raises:
            OSError: its weights are not there.
            ValueError: there is no such model, or it is no timm_wrapper classifier.
        """
        check_model_name(model)
        check_foreign_model(model)
        transformers_logging.disable_progress_bar()
        loaded = AutoModelForImageClassification.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        ).eval()
        if not getattr(loaded.config, "pretrained_cfg", None):
            raise ValueError(f"{model} is a {loaded.config.model_type}; only timm_wrapper classifiers can be exported")
        return cls(loaded, str(model))

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return [self.config.id2label[index] for index in range(self.config.num_labels)]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.config.pretrained_cfg["input_size"]
        return channels, height, width

    @property
    def example(self) -> Tensor:
        """What the model is traced with: (2, 3, H, W); a batch of 1 would be taken for a constant."""
        return torch.randn(2, *self.input_size, generator=torch.Generator().manual_seed(0))

    @cached_property
    def _processor(self) -> TimmWrapperImageProcessor:
        return TimmWrapperImageProcessor(self.config.pretrained_cfg)

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Apply the model's own preprocessing to RGB images: (B, 3, H, W)."""
        return self._processor(list(images), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.model(pixel_values=pixel_values).logits

    def facts(self) -> dict[str, str]:
        """What the exported file carries.

        `labels` and `pretrained_cfg` (JSON), `model_name`, `architecture`, `hf_kdmri_version`, `notice`, and, where
        they are known, `temperature` (divide the logits by it for calibrated probabilities) and `license` (from the
        model card).
        """
        config = self.config
        facts = {
            "labels": json.dumps(self.labels),
            "pretrained_cfg": json.dumps(config.pretrained_cfg),
            "model_name": self._own_name(),
            "architecture": config.architecture,
            "hf_kdmri_version": hf_kdmri.__version__,
            "notice": NOTICE,
        }
        if (temperature := getattr(config, TEMPERATURE_KEY, None)) is not None:
            facts["temperature"] = repr(float(temperature))
        card = Path(self.name) / "README.md"
        if card.is_file() and (license_ := ModelCard.load(card).data.get("license")):
            facts["license"] = str(license_)
        return facts

    def _own_name(self) -> str:
        """The Hub name, or the last two parts of the folder: `figshare/student`, without where it lies on this disk."""
        path = Path(self.name)
        return "/".join(path.resolve().parts[-2:]) if path.is_dir() else self.name
