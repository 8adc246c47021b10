"""The Kaggle copy of the slices, through Kaggle's own client."""

from __future__ import annotations

from pathlib import Path

import datasets
import huggingface_hub

from dataset_script.http_download import DownloadError

HANDLE = "ashkhagan/figshare-brain-tumor-dataset"


def kaggle_folder(*, force: bool = False) -> Path:
    """Download Kaggle's copy, or take it from kagglehub's cache, and return its folder: a `data_dir` as any other.

    Kaggle publishes no checksums of ours: every slice is checked when it is read, its origin is not.

    Args:
        force: Download even if it is in kagglehub's cache.

    Raises:
        ImportError: kagglehub is not installed.
        DownloadError: offline mode, or whatever kagglehub could not do.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError(
            "source='kaggle' needs kagglehub: pip install 'hf_kdmri[kaggle]', or use source='figshare'"
        ) from error
    ways_on = (
        "try again, use source='figshare', or download the archive of that Kaggle data set in a browser and give "
        "--data_dir DIR (data_dir=...)"
    )
    if datasets.config.HF_HUB_OFFLINE or huggingface_hub.is_offline_mode():
        raise DownloadError(
            f"{HANDLE}: Kaggle is not asked in offline mode; unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or {ways_on}"
        )
    try:
        return Path(kagglehub.dataset_download(HANDLE, force_download=force))
    except Exception as error:  # kagglehub documents none: its own, requests' and zipfile's were seen
        raise DownloadError(f"{HANDLE}: kagglehub could not download it ({error}); {ways_on}") from error
