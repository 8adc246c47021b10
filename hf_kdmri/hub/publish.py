"""Send a finished model folder to the Hugging Face Hub, in one commit, or say what would be sent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

logger = logging.getLogger(__name__)

REQUIRED_FILES = ("config.json", "model.safetensors")
# Training state, pickles, secrets and caches: never part of a published model.
IGNORED = (
    "checkpoint-*",
    "checkpoint-*/*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "distillation_head.safetensors",
    "trainer_state.json",
    ".*",
    "*/.*",
    "*__pycache__*",
)

_REASONS = {
    401: "the Hub does not know who you are: run `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "your token may not write there: use a token with write access, and a name under your own user or group",
    404: "there is no such user or group, or your token cannot see it: check the part before the slash",
    409: "another push to this repository is under way or won: look at its history, then push again",
    413: "a file is too large for the Hub: look at the sizes with --dry-run",
    429: "too many requests: wait a few minutes and push again",
}


class PublishError(RuntimeError):
    """A push did not go through; the message says why and what to do."""


@dataclass(frozen=True)
class Push:
    """What a push sent, or in a dry run would send.

    Args:
        repo_id: `user/name`.
        files: (path in the repository, size in bytes), sorted by path.
        url: Of the commit; None in a dry run.
    """

    repo_id: str
    files: tuple[tuple[str, int], ...]
    url: str | None

    @property
    def total_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(size for _, size in self.files)


def find_model_folder(folder: str | Path) -> Path:
    """Return the folder itself, or its `student/` if it is a run folder.

    Raises:
        FileNotFoundError: Neither holds `config.json` and `model.safetensors`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected a run folder or a model folder")
    for candidate in (folder, folder / "student"):
        if all((candidate / name).is_file() for name in REQUIRED_FILES):
            return candidate
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    raise FileNotFoundError(
        f"{folder} is no model folder: {' and '.join(missing)} missing (and there is no finished student/ in it). "
        "Finish the run, or give a folder written by save_pretrained."
    )


def push_folder(folder: str | Path, repo_id: str, *, private: bool = False, dry_run: bool = False) -> Push:
    """Create the repository if it is new and upload the folder in one commit.

    Training state, pickles and hidden files (`IGNORED`) stay behind. Repeating a push that failed is safe: the
    repository is reused, files that are there already are not sent again, and the commit is all or nothing.

    Args:
        folder: Model folder with `config.json` and `model.safetensors`.
        repo_id: `user/name`.
        private: Make a new repository private; one that exists keeps its setting.
        dry_run: Only list the files; nothing is sent and no account is needed.

    Returns:
        The files with their sizes, and the commit's address.

    Raises:
        FileNotFoundError: The folder lacks a required file.
        ValueError: `repo_id` is not `user/name`.
        PublishError: The Hub refused or could not be reached.
    """
    folder = Path(folder)
    if missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is no model folder: {' and '.join(missing)} missing. Was it saved completely?"
        )
    check_repo_id(repo_id)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    kept: Iterable[str] = filter_repo_objects(sizes, ignore_patterns=list(IGNORED))
    files = tuple((name, sizes[name]) for name in kept)
    if dry_run:
        return Push(repo_id, files, None)
    if "README.md" not in sizes:
        logger.warning("%s has no README.md: the model is published without a card", folder)
    api = HfApi(library_name="hf_kdmri")
    with push_errors(f"push of {folder} to {repo_id}", api):
        api.create_repo(repo_id, private=private, exist_ok=True)
        # Not upload_folder: since huggingface_hub 2 it may split a folder over several commits.
        commit = api.create_commit(
            repo_id,
            operations=[CommitOperationAdd(name, folder / name) for name, _ in files],
            commit_message="Upload the distilled student",
        )
    return Push(repo_id, files, str(commit.commit_url))


@contextmanager
def push_errors(what: str, api: HfApi) -> Iterator[None]:
    """Turn whatever the Hub's client raises inside into a `PublishError` that says what to do.

    Args:
        what: What was tried, for the message.
        api: The client, whose endpoint is named.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = _REASONS.get(status, "the Hub answered with an error; push again later, nothing is half done")
        raise PublishError(f"{what} failed (HTTP {status}): {reason}. Hub: {error}") from error
    except (HTTPError, OSError) as error:
        raise PublishError(
            f"{what} failed: {api.endpoint} cannot be reached ({error}). Check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, then push again; what is on this machine stays as it is."
        ) from error


def check_repo_id(repo_id: str, example: str = "jane/kdmri-student") -> None:
    """Refuse what is not of the form `user/name`.

    Raises:
        ValueError: it has another form.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no repository name; expected user/name, for instance {example}")
