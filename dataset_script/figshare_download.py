"""Download the published archives from figshare by file id and verify them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import datasets

BASE_URL = "https://ndownloader.figshare.com/files"
_CONNECT_SECONDS = 15


@dataclass(frozen=True)
class PublishedFile:
    """One file of figshare article 1512427."""

    name: str
    file_id: int
    sha256: str


PUBLISHED_ZIPS = (
    PublishedFile(
        "brainTumorDataPublic_1-766.zip", 3381290, "cdac0a7f4152cb34dd79b13543da96c37a6928ad8cb823e2662150b1a73ade54"
    ),
    PublishedFile(
        "brainTumorDataPublic_767-1532.zip", 3381296, "d18e896d14f7af791cdd3d9b9342f9f974742a06132effde5a5219209862b4ce"
    ),
    PublishedFile(
        "brainTumorDataPublic_1533-2298.zip",
        3381293,
        "612d9f506c55c54db5f2f38b6d50741ef97a6d7c32b3e1be76e789674a97aefb",
    ),
    PublishedFile(
        "brainTumorDataPublic_2299-3064.zip",
        3381302,
        "9a673c55d139133cfbc57097bf155b5ac9f33684ee97f40bf2afba332d416a3a",
    ),
)


class DownloadError(ConnectionError):
    """A published file could not be downloaded whole; the message names it and the ways on."""


def download_published_zips(dl_manager: datasets.DownloadManager, base_url: str = BASE_URL) -> dict[str, str]:
    """Download the four zips, or take them from the cache, and verify their sha256.

    Args:
        dl_manager: The builder's download manager.
        base_url: Each file is fetched from `<base_url>/<file id>`. Default: figshare.

    Returns:
        The path of each zip and its published name.

    Raises:
        DownloadError: no network, or a file whose bytes are not the published ones.
    """
    paths = {}
    for file in PUBLISHED_ZIPS:
        url = f"{base_url.rstrip('/')}/{file.file_id}"
        try:
            path = str(_with_connect_timeout(dl_manager).download(url))
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise DownloadError(
                f"{file.name}: cannot be downloaded from {url} ({error.__cause__ or error}). Without network, give "
                f"--data_dir DIR (data_dir=...) with the published zips, or run `make demo` on generated slices"
            ) from error
        _verify(file, path, url)
        paths[path] = file.name
    return paths


def _with_connect_timeout(dl_manager: datasets.DownloadManager) -> datasets.DownloadManager:
    # aiohttp waits 5 minutes for a host that does not answer; only the connecting is limited, not the download
    options = dl_manager.download_config.storage_options
    for scheme in ("http", "https"):
        client = options.setdefault(scheme, {}).setdefault("client_kwargs", {})
        client.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=120))
    return dl_manager


def _verify(file: PublishedFile, path: str, url: str) -> None:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        Path(path).unlink()  # else the next try would find the wrong file in the cache
        raise DownloadError(
            f"{file.name}: downloaded from {url} with sha256 {digest.hexdigest()}, published is {file.sha256}; the "
            f"copy was deleted: try again, or give --data_dir DIR (data_dir=...) with the published zips"
        )
