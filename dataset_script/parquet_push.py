"""Send a converted folder to the Hugging Face Hub as a dataset, in one commit, or say what would be sent."""

from __future__ import annotations

from pathlib import Path

from dataset_script.parquet_files import CARD, ConversionFolder
from dataset_script.parquet_layout import DATA, is_shard_name
from hf_kdmri.hub.contents import Content
from hf_kdmri.hub.hub_errors import TIMEOUT, check_repo_id
from hf_kdmri.hub.publish import Push, push_plan
from hf_kdmri.hub.repository import RepositoryPlan

EXAMPLE = "jane/brain-tumours"  # of a name, for messages
PLACEHOLDER = "path/to/this/folder"  # in the examples of a card that was written before the repository had a name


def push_dataset(
    folder: ConversionFolder,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    tag: str | None = None,
    timeout: float = TIMEOUT,
) -> Push:
    """Create the dataset repository if it is new, and upload shards, checksums and card in one commit.

    Shards of an earlier push that this conversion does not have are deleted in the same commit, because the globs of
    the card would find them, too. Files that the repository has already are not sent again; where all are there and
    equal, there is no commit.

    Args:
        folder: A finished conversion.
        repo_id: `user/name`.
        private: Make a new repository private.
        dry_run: Only list the files; nothing is sent and no account is needed.
        tag: Name of a release, set on the commit; refused where it stands on another one.
        timeout: Seconds without a byte from the Hub.

    Returns:
        The files with their sizes, and the commit's address.

    Raises:
        ValueError: `repo_id` is not `user/name`.
        PublishError: no token, or the Hub refused or could not be reached; the message says what is there.
    """
    check_repo_id(repo_id, EXAMPLE)
    files: dict[str, Content] = {name: folder.out / name for name in folder.published_files()}
    card = (folder.out / CARD).read_text(encoding="utf-8")
    files[CARD] = card.replace(PLACEHOLDER, repo_id).encode()
    plan = RepositoryPlan(repo_id, files, "Upload the Parquet conversion", "dataset", is_stale=_is_shard)
    return push_plan(plan, private=private, dry_run=dry_run, tag=tag, timeout=timeout)


def _is_shard(name: str) -> bool:
    path = Path(name)
    return path.parent.as_posix() == DATA and is_shard_name(path.name)
