"""From a request to the images and parameters in it: raw bytes, JSON or a form."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from hf_kdmri.serving.answers import Refusal


class Parameters(BaseModel):
    """What a client may ask for, as in the Hub's API."""

    model_config = ConfigDict(extra="forbid", strict=True)

    top_k: int | None = Field(default=None, ge=1)
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


@dataclass(frozen=True)
class ClassificationRequest:
    """Encoded images, what each is called in errors, whether a list of answers is expected, and the parameters."""

    images: list[bytes]
    names: list[str]
    many: bool
    parameters: Parameters


async def read_body(request: Request, max_body: int, timeout: float) -> bytes:
    """Read a request's body, and stop at the limit or when it takes too long.

    Args:
        request: The request.
        max_body: Bytes.
        timeout: Seconds for the whole body.

    Raises:
        Refusal: 413 or 408.
    """
    too_large = Refusal(413, f"the request is larger than {max_body:,} bytes; send a smaller image", unread=True)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_body:
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            if len(body) + len(chunk) > max_body:
                raise too_large
            body.extend(chunk)

    try:
        await asyncio.wait_for(read(), timeout)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the request was not sent within {timeout:g} s; send it again", unread=True) from None
    return bytes(body)


async def parse_body(body: bytes, headers: Headers, max_images: int) -> ClassificationRequest:
    """Find the images in a body.

    `application/json` holds `inputs`, base64 text or a list of such, and `parameters`; `multipart/form-data` holds
    files, and `parameters`, `top_k` or `function_to_apply` as fields. Every other content type is one image as it is.

    Args:
        body: The whole body.
        headers: Of the request.
        max_images: Allowed in one request.

    Raises:
        Refusal: 400 for what cannot be parsed, 413 for too many images, 422 for wrong parameters.
    """
    if not body:
        raise Refusal(400, "the request has no body; send an image")
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        found = await asyncio.to_thread(_from_json, body)
    elif kind == "multipart/form-data":
        found = await _from_form(body, headers, max_images)
    else:
        found = ClassificationRequest([body], ["the body"], False, Parameters())
    if not found.images:
        raise Refusal(400, "the request holds no image")
    if len(found.images) > max_images:
        raise Refusal(413, f"the request holds {len(found.images)} images, at most {max_images} are taken; send fewer")
    return found


def _from_json(body: bytes) -> ClassificationRequest:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Refusal(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict) or "inputs" not in content:
        raise Refusal(400, 'the JSON has no "inputs"; expected {"inputs": base64 of an image, or a list of such}')
    if unknown := sorted(content.keys() - {"inputs", "parameters", "options"}):  # options: of the Hub's older clients
        raise Refusal(422, f"unknown field {unknown[0]!r}; expected inputs and parameters")
    parameters = _parameters(content.get("parameters"))
    inputs = content["inputs"]
    many = isinstance(inputs, list)
    texts = inputs if many else [inputs]
    names = [f"inputs[{at}]" for at in range(len(texts))] if many else ["inputs"]
    images = [_from_base64(text, name) for text, name in zip(texts, names, strict=True)]
    return ClassificationRequest(images, names, many, parameters)


def _from_base64(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise Refusal(400, f"{name} is {type(text).__name__}, expected base64 text of an image")
    if text.startswith(("http://", "https://")):
        raise Refusal(400, f"{name} is an address, and none is fetched; send the image itself, in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{name} is not valid base64: {error}") from error


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write large parts to a temporary file: medical images do not belong there."""

    spool_max_size = 0  # SpooledTemporaryFile's word for "never"


async def _from_form(body: bytes, headers: Headers, max_images: int) -> ClassificationRequest:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        form = await _InMemory(headers, stream(), max_files=max_images, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", str(error))
        raise Refusal(400, f"the form cannot be read: {reason}") from error
    images: list[bytes] = []
    names: list[str] = []
    given: dict[str, Any] = {}
    for field, value in form.multi_items():
        if isinstance(value, UploadFile):
            images.append(await value.read())
            names.append(f"file {len(images)}")
        elif field == "parameters":
            given |= _parameters(_loads(value)).model_dump(exclude_unset=True)
        else:
            given[field] = value if field == "function_to_apply" else _loads(value)
    await form.close()
    return ClassificationRequest(images, names, len(images) > 1, _parameters(given))


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parameters(given: object) -> Parameters:
    if given is None:
        return Parameters()
    if not isinstance(given, Mapping):
        raise Refusal(422, f"parameters is {type(given).__name__}, expected an object with top_k or function_to_apply")
    try:
        return Parameters.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refusal(422, f"parameter {where!r}: {first['msg'].removeprefix('Value error, ')}") from error
