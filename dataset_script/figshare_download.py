"""The published archives of figshare article 1512427: which they are, and how they get into the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub

from dataset_script.http_download import DownloadError, RefusedError, RemoteFile, download

BASE_URL = "https://ndownloader.figshare.com/files"
API_URL = "https://api.figshare.com/v2/file/download"  # same files; asked where figshare refuses programs at the first
FOLDER = "figshare-1512427"  # in the download cache

logger = datasets.utils.logging.get_logger(__name__)


@dataclass(frozen=True)
class PublishedFile(RemoteFile):
    """One file of figshare article 1512427."""

    file_id: int


PUBLISHED_ZIPS = (
    PublishedFile(
        "brainTumorDataPublic_1-766.zip",
        214_401_279,
        "cdac0a7f4152cb34dd79b13543da96c37a6928ad8cb823e2662150b1a73ade54",
        3381290,
    ),
    PublishedFile(
        "brainTumorDataPublic_767-1532.zip",
        217_848_429,
        "d18e896d14f7af791cdd3d9b9342f9f974742a06132effde5a5219209862b4ce",
        3381296,
    ),
    PublishedFile(
        "brainTumorDataPublic_1533-2298.zip",
        215_563_856,
        "612d9f506c55c54db5f2f38b6d50741ef97a6d7c32b3e1be76e789674a97aefb",
        3381293,
    ),
    PublishedFile(
        "brainTumorDataPublic_2299-3064.zip",
        231_679_762,
        "9a673c55d139133cfbc57097bf155b5ac9f33684ee97f40bf2afba332d416a3a",
        3381302,
    ),
)


def check_source(source: str, base_url: str, data_dir: str | None) -> None:
    """Refuse options that say nothing, or two things, about where the data come from.

    Raises:
        ValueError: an unknown source, a mirror that is no web address, or a second place besides `data_dir` or Kaggle.
    """
    if source not in ("figshare", "kaggle"):
        raise ValueError(f"source is {source!r}, expected 'figshare' or 'kaggle'; for files on this machine: data_dir")
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(
            f"base_url is {base_url!r}, expected an address that begins with http:// or https://; for files on this "
            f"machine: data_dir"
        )
    if (source == "kaggle") + (base_url != BASE_URL) + (data_dir is not None) > 1:
        raise ValueError(
            f"source is {source!r}, base_url {base_url!r} and data_dir {data_dir!r}; give at most one of "
            f"source='kaggle', base_url (a mirror of figshare) and data_dir"
        )


def published_sha256s() -> list[str]:
    """What a download is, whichever server it came from."""
    return [file.sha256 for file in PUBLISHED_ZIPS]


def download_published_zips(dl_manager: datasets.DownloadManager, base_url: str = BASE_URL) -> dict[str, str]:
    """Download the four zips, or take them from the cache, and verify their sha256.

    They lie in the download cache under their published names: the folder is a `data_dir`, too.

    Args:
        dl_manager: The builder's download manager, whose `download_config` gives the cache and `force_download`.
        base_url: Each file is fetched from `<base_url>/<file id>`. Default: figshare's download host and, where that
            refuses, figshare's API.

    Returns:
        The path of each zip and its published name.

    Raises:
        DownloadError: no network, offline mode, or a file whose bytes are not the published ones.
        OSError: the disk is full or not writable.
    """
    config = dl_manager.download_config
    folder = Path(config.cache_dir or datasets.config.DOWNLOADED_DATASETS_PATH).expanduser() / FOLDER
    addresses = (BASE_URL, API_URL) if base_url == BASE_URL else (base_url,)
    offline = datasets.config.HF_HUB_OFFLINE or huggingface_hub.is_offline_mode() or config.local_files_only
    paths = {}
    for file in PUBLISHED_ZIPS:
        path = folder / file.name
        _download(file, path, addresses, force=config.force_download, offline=offline)
        paths[str(path)] = file.name
        dl_manager.download(str(path))  # it is local by now; datasets records its size
    return paths


def _download(file: PublishedFile, path: Path, addresses: tuple[str, ...], *, force: bool, offline: bool) -> None:
    for address in addresses:
        url = f"{address.rstrip('/')}/{file.file_id}"
        try:
            return download(file, url, path, force=force, offline=offline)
        except DownloadError as error:
            if isinstance(error, RefusedError) and address != addresses[-1]:
                logger.warning(f"{file.name}: {url} refuses ({error}); asking the next address")
                continue
            raise DownloadError(
                f"{file.name}: cannot be downloaded from {url} ({error}); try again, or download the zips of figshare "
                f"article 1512427 in a browser and give --data_dir DIR (data_dir=...) or put them into {path.parent}, "
                f"or run `make demo` on generated slices"
            ) from error
