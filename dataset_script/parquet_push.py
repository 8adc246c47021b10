"""Send a converted folder to the Hugging Face Hub as a dataset, in one commit, or say what would be sent."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from dataset_script.parquet_files import ConversionFolder
from dataset_script.parquet_layout import DATA, is_shard_name
from hf_kdmri.hub.publish import PublishError, Push, check_repo_id, push_errors

EXAMPLE = "jane/brain-tumours"  # of a name, for messages


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
    check_repo_id(repo_id, EXAMPLE)
    files = tuple((name, (folder.out / name).stat().st_size) for name in folder.published_files())
    if dry_run:
        return Push(repo_id, files, None)
    check_login(repo_id)
    api = HfApi(library_name="hf_kdmri")
    with push_errors(f"push to {repo_id}", api):
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
    return Push(repo_id, files, str(commit.commit_url))


def _is_shard(name: str) -> bool:
    path = Path(name)
    return path.parent.as_posix() == DATA and is_shard_name(path.name)
