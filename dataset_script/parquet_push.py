"""Send a converted folder to the Hugging Face Hub as a dataset, in one commit, or say what would be sent."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from dataset_script.parquet_files import ConversionFolder
from dataset_script.parquet_layout import DATA, is_shard_name
from hf_kdmri.hub.publish import PublishError, Push

_REASONS = {
    401: "the Hub does not know who you are: run `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "your token may not write there: use a token with write access, and a name under your own user or group",
    404: "there is no such user or group, or your token cannot see it: check the part before the slash",
    409: "another push to this repository is under way or won: look at its history, then push again",
    429: "too many requests: wait a few minutes and push again",
}


def check_repo_id(repo_id: str) -> str:
    """Return a name of the form `user/name`.

    Raises:
        ValueError: it has another form.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no repository name; expected user/name, for instance jane/brain-tumours")
    return repo_id


def check_login(repo_id: str) -> None:
    """Refuse to begin what could not be pushed.

    Raises:
        PublishError: no token.
    """
    if get_token() is None:
        raise PublishError(f"push to {repo_id}: not logged in; run `hf auth login`, or set HF_TOKEN to a write token")


def push_dataset(folder: ConversionFolder, repo_id: str, *, private: bool = False, dry_run: bool = False) -> Push:
    """Create the dataset repository if it is new, and upload shards, checksums and card in one commit.

    Shards of an earlier push that this conversion does not have are deleted in the same commit, because the globs of
    the card would find them, too. Files that the repository has already are not sent again.

    Args:
        folder: A finished conversion.
        repo_id: `user/name`.
        private: Make a new repository private; one that exists keeps its setting.
        dry_run: Only list the files; nothing is sent and no account is needed.

    Returns:
        The files with their sizes, and the commit's address.

    Raises:
        ValueError: `repo_id` is not `user/name`.
        PublishError: no token, or the Hub refused or could not be reached.
    """
    check_repo_id(repo_id)
    files = tuple((name, (folder.out / name).stat().st_size) for name in folder.published_files())
    if dry_run:
        return Push(repo_id, files, None)
    check_login(repo_id)
    api = HfApi(library_name="hf_kdmri")
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type="dataset")
        stale = [name for name in there if _is_shard(name) and name not in dict(files)]
        commit = api.create_commit(  # not upload_folder, which may split a folder over several commits
            repo_id,
            repo_type="dataset",
            operations=[
                *(CommitOperationAdd(name, folder.out / name) for name, _ in files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Upload the Parquet conversion",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = _REASONS.get(status, "the Hub answered with an error; push again later, nothing is half done")
        raise PublishError(f"push to {repo_id} failed (HTTP {status}): {reason}. Hub: {error}") from error
    except (HTTPError, OSError) as error:
        raise PublishError(
            f"push to {repo_id} failed: {api.endpoint} cannot be reached ({error}). Check the network, HF_ENDPOINT "
            f"and HF_HUB_OFFLINE, then push again; the folder {folder.out} stays as it is."
        ) from error
    return Push(repo_id, files, str(commit.commit_url))


def _is_shard(name: str) -> bool:
    path = Path(name)
    return path.parent.as_posix() == DATA and is_shard_name(path.name)
