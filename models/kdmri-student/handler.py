"""What Hugging Face Inference Endpoints run for this model instead of a plain pipeline.

It lies beside the weights and needs transformers, timm, torch, Pillow and numpy, nothing else. A plain pipeline clips
pictures of more than 8 bits at 255; here they are windowed between their own percentiles 0.1 and 99.9, as the training
slices were.

    {"inputs": "<base64 of a PNG, JPEG, TIFF ...>", "parameters": {"top_k": 2}}

`inputs` may be a list. Send 16-bit pictures so: of a request whose body is the picture itself, Hugging Face's own
toolkit makes an 8-bit RGB picture before anything here sees it. Research use only, not a medical device.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

MAX_PIXELS = 64_000_000
MAX_IMAGES = 64
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
FUNCTIONS = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


class EndpointHandler:
    """Classifies pictures.

    Args:
        path: Folder of the model.
    """

    def __init__(self, path: str = "") -> None:
        self.processor = AutoImageProcessor.from_pretrained(path)
        self.model = AutoModelForImageClassification.from_pretrained(path, use_safetensors=True).eval()
        if torch.cuda.is_available():
            self.model.to("cuda")
        self.labels = [str(self.model.config.id2label[index]) for index in range(self.model.config.num_labels)]

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Answer one request.

        Args:
            data: `inputs`, a picture (base64 text, bytes, or a PIL image) or a list of them, and `parameters`: `top_k`
                and `function_to_apply` ("softmax", "sigmoid" or "none").

        Returns:
            `{"label", "score"}` of each class, best first; a list of such lists for a list of pictures.

        Raises:
            ValueError: No picture, several frames, too large, pixels that are not finite, or wrong parameters.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        top_k, function = _checked(parameters)
        many = isinstance(inputs, list)
        pictures: list[Any] = inputs if isinstance(inputs, list) else [inputs]
        if not 1 <= len(pictures) <= MAX_IMAGES:
            raise ValueError(f"inputs holds {len(pictures)} pictures, expected 1 to {MAX_IMAGES}")
        images = [_read(picture) for picture in pictures]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"].to(self.model.device)
        with torch.inference_mode():
            scores = FUNCTIONS[function](self.model(pixel_values=pixel_values).logits.float()).cpu()
        if not torch.isfinite(scores).all():
            raise ValueError("the model gave scores that are not finite")
        answers = [self._ranked(row)[:top_k] for row in scores]
        return answers if many else answers[0]

    def _ranked(self, row: torch.Tensor) -> list[dict[str, Any]]:
        order = row.argsort(descending=True, stable=True).tolist()
        return [{"label": self.labels[index], "score": float(row[index])} for index in order]


def _checked(parameters: Any) -> tuple[int | None, str]:
    if not isinstance(parameters, dict) or parameters.keys() - {"top_k", "function_to_apply"}:
        raise ValueError(f"parameters is {parameters!r}, expected an object with top_k or function_to_apply")
    top_k, function = parameters.get("top_k"), parameters.get("function_to_apply") or "softmax"
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}, expected a whole number of at least 1")
    if function not in FUNCTIONS:
        raise ValueError(f"function_to_apply is {function!r}, expected one of {', '.join(FUNCTIONS)}")
    return top_k, function


def _read(picture: Any) -> Image.Image:
    """One picture as upright 8-bit RGB."""
    try:
        if isinstance(picture, Image.Image):
            return _to_rgb(ImageOps.exif_transpose(picture))
        encoded = picture if isinstance(picture, bytes) else _from_base64(picture)
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it is {width} x {height} pixels, at most {MAX_PIXELS:,} are read")
            if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                raise ValueError(f"it holds {opened.n_frames} frames, expected one")
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
        raise ValueError(f"a picture cannot be read: {str(error).split(' <_io.BytesIO')[0]}") from error


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"it is {type(text).__name__}, expected base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is not valid base64 ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.split(";")[0] not in ("I", "F"):
        return image.convert("RGB")
    raw = np.asarray(image).astype(np.float64)
    if not np.isfinite(raw).all():
        raise ValueError("it has pixels that are not finite")
    low, high = np.percentile(raw, (0.1, 99.9))
    if high <= low:
        raise ValueError("it is constant between its percentiles 0.1 and 99.9")
    windowed = np.rint((np.clip(raw, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)
    return Image.fromarray(windowed).convert("RGB")
