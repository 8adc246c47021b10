"""Send a finished model folder to the Hugging Face Hub, in one commit, or say what would be sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from hf_kdmri.hub.card_rules import check_card
from hf_kdmri.hub.contents import REQUIRED_FILES, collect_folder, refuse_secrets
from hf_kdmri.hub.hub_errors import TIMEOUT, PublishError, check_login, check_repo_id, impatient_client
from hf_kdmri.hub.repository import Journal, PushedRepository, RepositoryPlan, carry_out, inspect

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Push:
    """What a push sent, or in a dry run would send.

    Args:
        repo_id: `user/name`.
        files: (path in the repository, size in bytes), sorted by path.
        url: Of the commit; None in a dry run.
        sent: Paths that were new or had changed; None in a dry run, empty where all was there already.
    """

    repo_id: str
    files: tuple[tuple[str, int], ...]
    url: str | None
    sent: tuple[str, ...] | None = None

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


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    tag: str | None = None,
    timeout: float = TIMEOUT,
) -> Push:
    """Create the repository if it is new and upload the folder in one commit.

    Training state, pickles and hidden files (`IGNORED`) stay behind. Repeating a push that failed is safe: the
    repository is reused, files that are there already are not sent again, and the commit is all or nothing. Where
    nothing has changed, there is no commit.

    Args:
        folder: Model folder with `config.json` and `model.safetensors`.
        repo_id: `user/name`.
        private: Make a new repository private.
        dry_run: Only list the files; nothing is sent and no account is needed.
        tag: Name of a release, set on the commit; refused where it stands on another one.
        timeout: Seconds without a byte from the Hub.

    Returns:
        The files with their sizes, and the commit's address.

    Raises:
        FileNotFoundError: The folder lacks a required file.
        ValueError: `repo_id` is not `user/name`.
        CardError: The card breaks the Hub's rules; a `ValueError`.
        PublishError: The Hub refused or could not be reached, or a file holds a token.
    """
    folder = Path(folder)
    if missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is no model folder: {' and '.join(missing)} missing. Was it saved completely?"
        )
    check_repo_id(repo_id)
    plan = RepositoryPlan(repo_id, collect_folder(folder), "Upload the distilled student")
    if "README.md" in plan.files:
        check_card(folder)
    elif not dry_run:
        logger.warning("%s has no README.md: the model is published without a card", folder)
    return push_plan(plan, private=private, dry_run=dry_run, tag=tag, timeout=timeout)


def push_plan(plan: RepositoryPlan, *, private: bool, dry_run: bool, tag: str | None, timeout: float) -> Push:
    """Bring one repository to its content, or only list it; the arguments are those of `push_folder`.

    Raises:
        PublishError: the Hub refused or could not be reached, or a file holds a token.
    """
    refuse_secrets(plan.files)
    if dry_run:
        return Push(plan.repo_id, plan.sizes, None)
    (pushed,) = push_repositories([plan], private=private, tag=tag, timeout=timeout)
    return Push(plan.repo_id, plan.sizes, pushed.url, pushed.sent)


def push_repositories(
    plans: Sequence[RepositoryPlan],
    *,
    private: bool = False,
    tag: str | None = None,
    timeout: float = TIMEOUT,
    token: str | None = None,
    journal: Journal | None = None,
) -> list[PushedRepository]:
    """Bring several repositories to their content, one commit each, in the order given.

    All are looked at before anything is sent, so that a tag or a setting that forbids one of them stops the push.

    Args:
        plans: What each is to hold.
        private: Make new repositories private.
        tag: Name of a release, set on every commit.
        timeout: Seconds without a byte from the Hub.
        token: Instead of the one of `hf auth login` or HF_TOKEN.
        journal: Gets a line for whatever is done.

    Raises:
        PublishError: not logged in, or the Hub refused or could not be reached; the message says what is there.
    """
    journal = Journal() if journal is None else journal
    check_login(f"push to {', '.join(plan.title for plan in plans)}", token)
    api = HfApi(token=token, library_name="hf_kdmri")
    with impatient_client(timeout):
        states = [inspect(plan, api, private=private, tag=tag) for plan in plans]
        try:
            return [carry_out(state, api, journal, private=private, tag=tag) for state in states]
        except PublishError as error:
            raise journal.after(error) from None
        except KeyboardInterrupt:
            raise journal.after(PublishError("interrupted")) from None
