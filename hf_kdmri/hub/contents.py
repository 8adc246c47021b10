"""What of a model folder may be published: no training state, no pickles, no secrets."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import filter_repo_objects

from hf_kdmri.hub.hub_errors import PublishError

logger = logging.getLogger(__name__)

Content = Path | bytes

REQUIRED_FILES = ("config.json", "model.safetensors")
# Training state, pickles, secrets and caches: never part of a published model.
IGNORED = (
    "checkpoint-*",
    "checkpoint-*/*",
    "last-checkpoint/*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.pickle",
    "*.joblib",
    "*.tfevents.*",
    "distillation_head.safetensors",
    "trainer_state.json",
    ".*",
    "*/.*",
    "*__pycache__*",
)
_TEXT = (".json", ".md", ".yaml", ".yml", ".txt", ".csv", ".py", ".html", ".toml", ".svg")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
_LARGEST_TEXT = 10_000_000


def collect_folder(folder: Path) -> dict[str, Path]:
    """Find what is sent of a folder: everything but what `IGNORED` names and what is a pickle.

    Args:
        folder: Of the model.

    Returns:
        Files by their path in the repository, sorted.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: found[name] for name in filter_repo_objects(found, ignore_patterns=list(IGNORED))}
    for name in [name for name, path in kept.items() if is_pickle(path)]:
        logger.warning("%s is a pickle, which runs code when it is loaded; it is left out", kept[name])
        del kept[name]
    return kept


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle or, as `torch.save` writes it, an archive with one, whatever its name says."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if start != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def refuse_secrets(files: Mapping[str, Content]) -> None:
    """Refuse text files in which a Hub token stands; the message does not repeat it.

    Raises:
        PublishError: such a file.
    """
    mine = get_token()
    for name, content in files.items():
        if not name.lower().endswith(_TEXT):
            continue
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size > _LARGEST_TEXT:
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        text = data.decode("utf-8", errors="replace")
        if _TOKEN.search(text) or (mine and mine in text):
            raise PublishError(
                f"{name} holds a token of the Hugging Face Hub; take it out, and if it was ever published, revoke it "
                "at https://huggingface.co/settings/tokens. Nothing was sent."
            )


def content_size(content: Content) -> int:
    """Size in bytes of a file, or of what will be one."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
