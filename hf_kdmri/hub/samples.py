"""Sample images for the Hub's widget: generated phantoms, one per class, so that no patient's picture is published."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hf_kdmri.data.mat_file import LABEL_NAMES
from hf_kdmri.data.phantom import draw_one_of_each_class
from hf_kdmri.data.pixels import window_to_uint8

FOLDER = "samples"
_PIXELS = 256
_SEED = 21


def write_samples(model_folder: str | Path, labels: list[str]) -> list[Path]:
    """Write `samples/<class>.png`, 8-bit grey, if the classes are those that phantoms have.

    The same files come out every time, so that a repeated push has nothing to send. A file that is there is left as it
    is: it may be a picture of yours, with the right to publish it.

    Args:
        model_folder: Where `samples/` goes.
        labels: The model's classes.

    Returns:
        The files; none for other classes.
    """
    if sorted(labels) != sorted(LABEL_NAMES):
        return []
    folder = Path(model_folder) / FOLDER
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in LABEL_NAMES}
    if not all(path.is_file() for path in paths.values()):
        for name, raw in draw_one_of_each_class(size=_PIXELS, seed=_SEED).items():
            if not paths[name].is_file():
                Image.fromarray(window_to_uint8(raw)[0]).save(paths[name], optimize=True)
    return list(paths.values())
