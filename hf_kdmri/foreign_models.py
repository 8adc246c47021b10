"""What a stranger's model folder must not ask for: code, pickles, or weights of somewhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from transformers import PretrainedConfig

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SAFE = ("model.safetensors", "model.safetensors.index.json")
# Arguments of timm.create_model that open other files, or other repositories.
_ELSEWHERE = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "scriptable",
    "features_only",
}
_CONVERSION = (
    "convert them once, where you trust them: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)


def check_foreign_model(model: str | Path, **where: Any) -> None:
    """Refuse a model whose `config.json` names code or files beyond its folder, or whose weights are pickles.

    transformers ignores code that it was not told to trust, and timm opens whatever its arguments name. A model that
    asks for either is not what it says it is, so it is not loaded at all.

    Args:
        model: folder or Hub name, which is there.
        **where: `revision`, `subfolder`, `token`, `cache_dir`, as `from_pretrained` takes them.

    Raises:
        ValueError: one of these; the message names it and the way out.
        OSError: there is no `config.json`.
    """
    path = Path(model, where.get("subfolder") or "")
    if path.is_file():
        if path.suffix in _PICKLED:
            raise ValueError(f"{model} is a file of pickled weights, which can run code as it is opened; {_CONVERSION}")
        raise ValueError(f"{model} is a file; give the folder with its config.json and model.safetensors")
    if path.is_dir() and not any((path / name).is_file() for name in _SAFE):
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED)
        if pickled:
            raise ValueError(
                f"{model} holds its weights as {', '.join(pickled)} alone, pickles, which can run code as they are "
                f"opened; {_CONVERSION}"
            )
    config: dict[str, Any] = PretrainedConfig.get_config_dict(model, **where)[0]
    if config.get("auto_map"):
        raise ValueError(
            f"the config.json of {model} names code of its own (auto_map: {config['auto_map']}), which is never run "
            "here; ask for a version in a format of transformers' own, or remove auto_map if it needs no such code"
        )
    if config.get("model_type") != "timm_wrapper":
        return
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"the config.json of {model} has the architecture {architecture!r}, which timm {timm.__version__} does not "
            "know by that name; no other place is looked in"
        )
    arguments = config.get("model_args") or {}
    if wrong := sorted(_ELSEWHERE & set(arguments)):
        raise ValueError(
            f"the config.json of {model} passes {', '.join(wrong)} to timm, which would read other files than the "
            "model's own; remove it from model_args"
        )
