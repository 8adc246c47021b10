"""What the Hub's inference backend does with a published student: a plain pipeline, without this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_mutations import slice_pixels
from PIL import Image

from hf_kdmri.data.pictures import decode_picture
from tests.conftest import LABELS
from tests.outside import run_outside
from tests.tiny import sharp_student

LOSSLESS = {"grey.png", "rgb.png", "rgba.png", "palette.png", "turned.png", "grey.tiff", "grey.webp"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, float]]:
    """Scores that a plain pipeline gives to each file: one slice in many encodings, another one, and 16-bit ones."""
    folder = tmp_path_factory.mktemp("widget")
    sharp_student(folder / "student")
    pictures = folder / "pictures"
    pictures.mkdir()
    grey = Image.fromarray(slice_pixels((60, 50)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    for mode, name in (("L", "grey"), ("RGB", "rgb"), ("RGBA", "rgba"), ("P", "palette")):
        grey.convert(mode).save(pictures / f"{name}.png")
    for mode, name in (("L", "grey"), ("RGB", "rgb")):
        grey.convert(mode).save(pictures / f"{name}.jpg", quality=95)
    turned.save(pictures / "turned.png", exif=exif)
    turned.save(pictures / "turned.jpg", exif=exif, quality=95)
    grey.save(pictures / "grey.tiff")
    grey.save(pictures / "grey.webp", lossless=True)
    Image.fromarray(255 - np.asarray(grey)).save(pictures / "other.png")
    wide = slice_pixels((60, 50), high=4000)
    Image.fromarray(wide).save(pictures / "wide.png")
    Image.fromarray(np.minimum(wide, 255).astype(np.uint8)).save(pictures / "saturated.png")
    decode_picture((pictures / "wide.png").read_bytes()).save(pictures / "windowed.png")
    return run_outside(
        """
        import json
        from pathlib import Path
        from transformers import pipeline
        classify = pipeline("image-classification", model=sys.argv[1])
        files = sorted(Path(sys.argv[2]).iterdir())
        print(json.dumps({f.name: {row["label"]: row["score"] for row in classify(str(f))} for f in files}))
        """,
        folder / "student",
        pictures,
        cwd=folder,
    )


def distance(first: dict[str, float], second: dict[str, float]) -> float:
    return max(abs(first[label] - second[label]) for label in LABELS)


@pytest.mark.slow
def test_every_encoding_of_a_slice_gets_labels_and_the_same_probabilities(answers) -> None:
    for name, scores in answers.items():
        assert scores.keys() == set(LABELS), name
        assert np.isfinite(list(scores.values())).all() and sum(scores.values()) == pytest.approx(1, abs=1e-5), name
    assert distance(answers["grey.png"], answers["other.png"]) > 0.1, "the model tells nothing apart"
    for name in LOSSLESS:
        assert distance(answers["grey.png"], answers[name]) < 1e-6, name
    for name in ("grey.jpg", "rgb.jpg", "turned.jpg"):
        assert distance(answers["grey.png"], answers[name]) < 0.02, name


@pytest.mark.slow
def test_a_plain_pipeline_saturates_16_bit_pictures(answers) -> None:
    """Nothing can be done about it in a model folder: the cards warn; predict, serve and handler.py window first."""
    assert distance(answers["wide.png"], answers["saturated.png"]) < 1e-6
    assert distance(answers["wide.png"], answers["windowed.png"]) > 0.01


def test_the_entrance_is_where_the_tests_think(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="must not be needed"):
        run_outside("import hf_kdmri", cwd=tmp_path)
