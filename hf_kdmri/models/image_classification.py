"""Teacher and student as `PreTrainedModel`s on transformers' `timm_wrapper`.

What is saved is the backbone and its classifier in the public `timm_wrapper` format and nothing else, so the folder
loads in `transformers.AutoModelForImageClassification`, in `pipeline("image-classification")`, in
`timm.create_model("local-dir:…")` and here, with equal logits and without this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import timm
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_kdmri.foreign_models import check_foreign_model
from hf_kdmri.models.stages import stage_channels, stage_indices
from hf_kdmri.models.timm_network import check_architecture, create_network
from hf_kdmri.wording import counted

Model = TypeVar("Model", bound="TimmClassifier")
_PUBLIC_ARCHITECTURE = "TimmWrapperForImageClassification"
_PREFIX = "timm_model."
_PREPROCESSING_KEYS = ("mean", "std", "interpolation", "fixed_input_size", "classifier", "first_conv", "license")


@strict
class KDConfig(TimmWrapperConfig):
    """`TimmWrapperConfig` that remembers how many stage maps to distil and saves itself under the public class's name.

    Args:
        num_scales: stage maps returned by `stage_features`, coarsest strides first chosen (3: strides 8, 16 and 32).
        calibration_temperature: what logits are to be divided by for calibrated probabilities, fitted on validation
            slices; None where none was. The model's own logits are never divided.
        distillation: where a student comes from, see `hf_kdmri.hub.provenance`; None for other models.
    """

    num_scales: int = 3
    calibration_temperature: float | None = None
    distillation: dict[str, Any] | None = None

    def validate_calibration_temperature(self) -> None:
        """Refuse what no logits can be divided by."""
        value = self.calibration_temperature
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ValueError(f"calibration_temperature is {value!r}; expected a finite number above 0, or None")

    def to_dict(self) -> dict[str, Any]:
        """Serialise for `config.json`, naming the transformers class that loads it without this package."""
        output = super().to_dict()
        output["architectures"] = [_PUBLIC_ARCHITECTURE]
        output["model_args"] = output.get("model_args") or {}  # timm reads null as a mapping and fails
        if output.get("distillation") is None:
            output.pop("distillation", None)
        return output


class TimmClassifier(TimmWrapperForImageClassification):
    """What teacher and student share; use one of the two subclasses."""

    config_class = KDConfig
    config: KDConfig

    def __init__(self, config: KDConfig) -> None:
        super().__init__(config)
        if not hasattr(self.timm_model, "forward_intermediates"):
            raise ValueError(
                f"the timm architecture {config.architecture!r} has no stage features (forward_intermediates), which "
                f"distillation compares; choose another, for instance 'mobilenetv4_conv_small' or 'efficientvit_b0'"
            )
        self.stage_indices = stage_indices(self.timm_model, config.num_scales)

    @classmethod
    def from_timm(
        cls: type[Model],
        architecture: str,
        *,
        labels: Sequence[str],
        image_size: int | None = None,
        pretrained: bool = False,
        weights: str | Path | None = None,
        drop_path_rate: float | None = None,
        drop_rate: float | None = None,
        num_scales: int = 3,
        model_args: dict[str, Any] | None = None,
    ) -> Model:
        """Build a model from a timm architecture.

        Args:
            architecture: a timm model name; a weights tag (`resnet18.a1_in1k`) selects what `pretrained` loads.
            labels: class names, in the order of the logits.
            image_size: side of the square input in pixels; default is the architecture's own.
            pretrained: load timm's ImageNet weights from the Hub (needs the network).
            weights: a local `.safetensors` file in timm's keys to start from instead; its classifier is replaced.
            drop_path_rate: stochastic depth while training; not saved.
            drop_rate: classifier dropout while training; not saved.
            num_scales: stage maps returned by `stage_features`.
            model_args: further arguments of `timm.create_model` that belong to the architecture and are saved.

        Returns:
            The model, in eval mode, in float32.

        Raises:
            ValueError: unknown architecture, one without stage features, too few or doubled labels, or an argument
                the architecture does not take.
            FileNotFoundError: `weights` does not exist.
        """
        name = architecture.split(".")[0]
        check_architecture(name)
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"labels are {list(labels)}; at least two different class names are needed")
        published = timm.get_pretrained_cfg(architecture)
        if published is None:
            raise ValueError(f"timm has no weights and so no input size on record under {architecture!r}; try {name!r}")
        timm_cfg = published.to_dict()
        image_size = image_size or timm_cfg["input_size"][-1]
        saved_args = dict(model_args or {})
        if timm_cfg.get("fixed_input_size"):
            saved_args.setdefault("img_size", image_size)
        pretrained_cfg = {key: timm_cfg[key] for key in _PREPROCESSING_KEYS if timm_cfg.get(key) is not None}
        # The whole picture is resized to the square and nothing is cropped off or padded, whatever its aspect ratio.
        pretrained_cfg |= {"input_size": [3, image_size, image_size], "crop_pct": 1.0, "crop_mode": "squash"}
        config = KDConfig.from_dict(
            {
                "architecture": name,
                "model_args": saved_args,
                "num_classes": len(labels),
                "label_names": list(labels),
                "pretrained_cfg": pretrained_cfg,
                "num_scales": num_scales,
            }
        )
        training_args = {"drop_path_rate": drop_path_rate, "drop_rate": drop_rate}
        network = create_network(architecture, len(labels), {**saved_args, **training_args}, pretrained, weights)
        model = cls(config)
        # transformers redraws every layer from its own distribution; the features keep timm's, the published one.
        model.timm_model = network
        return model.eval()

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        names: dict[int, str] = self.config.id2label  # type: ignore[assignment]  # keys are integers after loading
        return [names[index] for index in range(len(names))]

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.config.pretrained_cfg["input_size"][-1])

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Mean per channel that the input is normalised with, of intensities scaled to 0–1."""
        return tuple(self.config.pretrained_cfg["mean"])

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Standard deviation per channel, likewise."""
        return tuple(self.config.pretrained_cfg["std"])

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the maps that `stage_features` returns, finest first."""
        return stage_channels(self.timm_model, self.stage_indices)

    def stage_features(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and stage maps in one pass.

        Args:
            pixel_values: (B, 3, H, W), normalised for this model.

        Returns:
            logits (B, C), and `num_scales` maps (B, C_i, H_i, W_i), finest first.
        """
        pixel_values = pixel_values.to(self.device, self.dtype)
        last, stages = self.timm_model.forward_intermediates(
            pixel_values, indices=self.stage_indices, output_fmt="NCHW"
        )
        return self.timm_model.forward_head(last), tuple(stages)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # all but one argument pass through unchanged
        cls: type[Model], pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a model from a folder or the Hub, from safetensors only and only if no weight is missing.

        Args:
            pretrained_model_name_or_path: folder or Hub name; None with `config` and `state_dict`.
            *args: passed on to `PreTrainedModel.from_pretrained`.
            **kwargs: likewise; `use_safetensors` is always True.

        Returns:
            The model in eval mode; with `output_loading_info=True`, also a dict of what was found.

        Raises:
            OSError: no `model.safetensors` there.
            ValueError: files of pickles (`.bin`), which are not read, as they can run code; a configuration that names
                code or other files; or the checkpoint lacks weights, which transformers would draw at random and only
                log.
        """
        if pretrained_model_name_or_path is not None:
            where = {name: kwargs[name] for name in ("revision", "subfolder", "token", "cache_dir") if name in kwargs}
            check_foreign_model(pretrained_model_name_or_path, **where)
        asked = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {counted(len(missing), 'weight')} of "
                f"{model.config.architecture!r}, the first is {missing[0].removeprefix(_PREFIX)}; save or download it "
                "again"
            )
        return (model, info) if asked else model

    def save_pretrained(  # type: ignore[override]  # all but the two named arguments pass through unchanged
        self, save_directory: str | Path, *, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """Save `config.json` and `model.safetensors`, the weights under timm's own keys.

        Args:
            save_directory: folder to write to; made if absent.
            state_dict: weights to save instead of the model's own (with or without the `timm_model.` prefix).
            **kwargs: passed on to `PreTrainedModel.save_pretrained`.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        # transformers adds the prefix again by itself on loading; timm knows only its own names.
        weights = {key.removeprefix(_PREFIX): value for key, value in weights.items()}
        super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Classify a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised for this model.
            labels: (B,) class indices; the output then holds the mean cross-entropy.
            **kwargs: `output_hidden_states` (True for all maps, or a list of indices), `return_dict`.

        Returns:
            `ImageClassifierOutput` with `logits` (B, C), and `loss` and `hidden_states` where asked for.
        """
        return super().forward(pixel_values, labels=labels, **kwargs)


class TeacherForImageClassification(TimmClassifier):
    """The large model that is distilled from: any timm architecture with stage features."""


class StudentForImageClassification(TimmClassifier):
    """The small model that is trained and published.

    Example:
        >>> import torch
        >>> student = StudentForImageClassification.from_timm("test_vit", labels=["a", "b"], image_size=64)
        >>> student(torch.zeros(1, 3, 64, 64)).logits.shape
        torch.Size([1, 2])
    """
