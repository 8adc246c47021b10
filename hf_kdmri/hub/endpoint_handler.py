"""Give a model folder what Hugging Face Inference Endpoints run in place of a plain pipeline."""

from __future__ import annotations

from pathlib import Path

from hf_kdmri.whole_files import write_whole

HANDLER = Path(__file__).with_name("handler.py")


def copy_handler(folder: str | Path) -> Path:
    """Copy `handler.py` into a model folder.

    Args:
        folder: A saved model; the file must lie at the root of its repository.

    Returns:
        The copy.

    Raises:
        FileNotFoundError: The folder holds no `config.json`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; give the folder of a saved model")
    write_whole(folder / "handler.py", HANDLER.read_text(encoding="utf-8"))
    return folder / "handler.py"
