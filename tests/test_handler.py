"""`handler.py` of Inference Endpoints: alone in a model folder, with the answers of `kdmri serve`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from picture_mutations import picture_bytes, slice_pixels
from PIL import Image

from hf_kdmri.hub import copy_handler
from hf_kdmri.inference import ImageClassifier
from hf_kdmri.serving.app import Service, create_app
from hf_kdmri.serving.settings import ServeSettings
from tests.outside import run_outside
from tests.tiny import sharp_student

GREY, WIDE = Image.fromarray(slice_pixels().astype(np.uint8)), Image.fromarray(slice_pixels(high=4000))
EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    "grey": picture_bytes(GREY, "PNG"),
    "colour": picture_bytes(GREY.convert("RGBA"), "PNG"),
    "jpeg": picture_bytes(GREY, "JPEG", exif=EXIF),
    "wide": picture_bytes(WIDE, "PNG"),
    "float": picture_bytes(Image.fromarray(np.asarray(WIDE).astype(np.float32)), "TIFF"),
}


def as_text(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


REQUESTS: list[dict] = [
    *({"inputs": as_text(encoded)} for encoded in PICTURES.values()),
    {"inputs": [as_text(encoded) for encoded in PICTURES.values()]},
    {"inputs": as_text(PICTURES["grey"]), "parameters": {"top_k": 2, "function_to_apply": "sigmoid"}},
    {"inputs": "data:image/png;base64," + as_text(PICTURES["grey"]), "parameters": {"function_to_apply": "none"}},
]
REFUSED: list[dict] = [
    {"inputs": as_text(b"no picture")},
    {"inputs": as_text(PICTURES["grey"])[:-2]},
    {"inputs": as_text(PICTURES["wide"][:80])},
    {"inputs": as_text(picture_bytes(Image.fromarray(np.full((9, 9), 700, np.uint16)), "PNG"))},
    {"inputs": as_text(picture_bytes(GREY, "GIF", save_all=True, append_images=[WIDE.convert("L")]))},
    {"inputs": []},
    {},
    {"inputs": as_text(PICTURES["grey"]), "parameters": {"top_k": 0}},
    {"inputs": as_text(PICTURES["grey"]), "parameters": {"topk": 1}},
]
CODE = """
import base64, io, json
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
from PIL import Image
handler = EndpointHandler(sys.argv[1])
requests, refused, picture = json.loads(open(sys.argv[2]).read())
def outcome(request):
    try:
        return handler(request)
    except ValueError as error:
        return str(error)
image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
print(json.dumps([[handler(r) for r in requests], [outcome(r) for r in refused], handler({"inputs": image})]))
"""


@pytest.mark.slow
def test_it_answers_without_this_package_as_serve_does(tmp_path: Path) -> None:
    folder = sharp_student(tmp_path / "student")
    assert copy_handler(folder) == folder / "handler.py"
    (tmp_path / "requests.json").write_text(json.dumps([REQUESTS, REFUSED, as_text(PICTURES["grey"])]))
    answers, refusals, of_image = run_outside(CODE, folder, tmp_path / "requests.json", cwd=tmp_path)
    service = Service(ImageClassifier(str(folder)), str(folder), ServeSettings())
    client = TestClient(create_app(service))
    for request, answer in zip(REQUESTS, answers, strict=True):
        expected = client.post("/", json=request).json()
        nested = isinstance(expected[0], list)
        for mine, theirs in zip(answer if nested else [answer], expected if nested else [expected], strict=True):
            assert [row["label"] for row in mine] == [row["label"] for row in theirs]
            assert [row["score"] for row in mine] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    for request, refusal in zip(REFUSED, refusals, strict=True):
        assert client.post("/", json=request).status_code in (400, 413, 422)
        assert isinstance(refusal, str) and refusal
    assert of_image == answers[0]
    service.close()


def test_it_is_only_copied_beside_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        copy_handler(tmp_path)
