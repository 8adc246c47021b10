"""A model's name, looked up before libraries of many seconds are imported and before they retry for minutes."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

PATIENCE = 5  # seconds for the Hub's first answer, unless HF_HUB_ETAG_TIMEOUT says otherwise
_CONFIG = "config.json"
_found: set[tuple[str, str]] = set()  # endpoint and name; whoever loads a model asks again what its command asked


def check_model_name(model: str | Path) -> None:
    """Make sure that a model is a folder here, in the cache, or on the Hub, asking the Hub once and for seconds only.

    `from_pretrained` asks for each of several files with pauses in between; where no Hub answers, that is two minutes.

    Args:
        model: Folder, file, or `user/name` on the Hub.

    Raises:
        ValueError: It is none of these; the message says what was tried and what to do.
    """
    name = str(model)
    if Path(name).exists():
        return
    if Path(name).is_absolute() or name.count("/") > 1 or name.startswith("."):
        raise ValueError(f"there is no folder {name}; give a model's folder, or user/name on the Hugging Face Hub")
    tried = f"there is no folder {name!r} here, and the Hugging Face Hub"
    hub = f"{tried} ({constants.ENDPOINT})"
    try:
        cached = isinstance(try_to_load_from_cache(name, _CONFIG), str)
        if cached or (constants.ENDPOINT, name) in _found:
            return
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"{tried} was not asked, as HF_HUB_OFFLINE is set; its cache has no such model: check the spelling, or "
                "unset it"
            )
        get_hf_file_metadata(hf_hub_url(name, _CONFIG), timeout=_patience())
        _found.add((constants.ENDPOINT, name))
    except HFValidationError as error:
        raise ValueError(f"{tried} allows no such name (user/name): {error}") from error
    except GatedRepoError as error:
        raise ValueError(
            f"{name!r} is on the Hugging Face Hub, but not open to everybody: ask for access on its page, and log in "
            "with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{hub} shows no model of that name: check the spelling; if it "
            "is private, log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except EntryNotFoundError as error:
        raise ValueError(f"{name!r} on the Hugging Face Hub has no {_CONFIG}, so no model") from error
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise ValueError(
            f"{hub} gives no answer ({_reason(error)}): check the spelling "
            "and the network; HF_HUB_OFFLINE=1 looks in the cache only, HF_ENDPOINT names another Hub"
        ) from error


def _patience() -> float:
    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else PATIENCE


def _reason(error: HfHubHTTPError | httpx2.HTTPError) -> str:
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return f"HTTP {response.status_code}" if response is not None else str(error) or type(error).__name__
