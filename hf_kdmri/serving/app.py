"""The endpoints: classification as the Hub's inference client asks for it, health, and what is served."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from torch import Tensor

from hf_kdmri import __version__
from hf_kdmri.data.picture_limits import PictureError
from hf_kdmri.data.pictures import doubt
from hf_kdmri.inference import ImageClassifier, decode_image
from hf_kdmri.serving.access_log import AccessLog
from hf_kdmri.serving.answers import Refusal, SafeJSON
from hf_kdmri.serving.batching import MicroBatcher
from hf_kdmri.serving.request_body import ClassificationRequest, Parameters, parse_body, read_body
from hf_kdmri.serving.settings import ServeSettings

NOTICE = "Research use only, not a medical device. Every image gets one of these labels, whatever it shows."
DOUBT_HEADER = "X-Kdmri-Warning"
_DOUBTS = 8  # of one request; a header must stay short
_FUNCTIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_JSON = {
    "schema": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "parameters": Parameters.model_json_schema(),
        },
    }
}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": _BINARY, "application/json": _JSON, "multipart/form-data": {}},
    }
}


class Score(BaseModel):
    """One class."""

    label: str
    score: float


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


class Service:
    """A loaded model and the threads that work for it.

    Args:
        classifier: The model.
        name: What clients are told it is called.
        settings: Limits.
    """

    def __init__(self, classifier: ImageClassifier, name: str, settings: ServeSettings) -> None:
        self.classifier, self.settings = classifier, settings
        self.labels = [str(label) for label in classifier.labels]
        # A folder's place on this machine is nobody's business; the name of a Hub repository is.
        self.name = Path(name).resolve().name if Path(name).is_dir() else name
        self.in_progress = 0
        self.batcher: MicroBatcher[Tensor, Tensor] = MicroBatcher(self._logits, settings.batch_size)
        # Few: each may hold a picture of the largest size.
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decoding")

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(cancel_futures=True)
        self.batcher.close()

    async def answer(self, request: Request) -> JSONResponse:
        """Read, classify and answer one request.

        Raises:
            Refusal: See `docs/serving.md` for each status.
        """
        if self.in_progress >= self.settings.concurrency:
            raise Refusal(503, "too many requests at once; send it again", headers={"Retry-After": "1"}, unread=True)
        self.in_progress += 1
        try:
            body = await read_body(request, self.settings.max_body, self.settings.timeout)
            asked = await parse_body(body, request.headers, self.settings.max_images)
            request.scope["kdmri.inputs"] = len(asked.images)
            try:
                results = await asyncio.wait_for(self._classify(asked), self.settings.timeout)
            except asyncio.TimeoutError:
                raise Refusal(504, f"no answer within {self.settings.timeout:g} s; send fewer images") from None
        finally:
            self.in_progress -= 1
        answers = [self._scores(logits, asked.parameters) for logits, _ in results]
        # The answer has the form that the Hub's client expects, so a doubt stands in a header.
        doubts = [f"{name} {told}" for name, (_, told) in zip(asked.names, results, strict=True) if told]
        headers = {DOUBT_HEADER: "; ".join(doubts[:_DOUBTS])} if doubts else None
        return SafeJSON(answers if asked.many else answers[0], headers=headers)

    async def _classify(self, asked: ClassificationRequest) -> list[tuple[Tensor, str | None]]:
        """Logits of each image, and what makes it doubtful."""
        loop = asyncio.get_running_loop()

        async def one(encoded: bytes, name: str) -> tuple[Tensor, str | None]:
            try:
                pixels, told = await loop.run_in_executor(self._decoders, self._prepare, encoded)
            except PictureError as error:
                raise Refusal(400, f"{name} {error}") from error
            return await self.batcher.submit(pixels), told

        tasks = [asyncio.create_task(one(*pair)) for pair in zip(asked.images, asked.names, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # of a request that failed or took too long, the rest need not be computed
                task.cancel()

    def _prepare(self, encoded: bytes) -> tuple[Tensor, str | None]:
        image = decode_image(encoded)
        return self.classifier.prepare([image])[0], doubt(image)

    def _logits(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        return list(self.classifier.logits(torch.stack(list(batch))))

    def _scores(self, logits: Tensor, parameters: Parameters) -> list[dict[str, Any]]:
        scores = _FUNCTIONS[parameters.function_to_apply or "softmax"](logits)
        if not torch.isfinite(scores).all():
            raise Refusal(500, "the model gave scores that are not finite, so there is no answer for this image")
        best = scores.argsort(descending=True, stable=True)[: parameters.top_k]
        return [{"label": self.labels[index], "score": float(scores[index])} for index in best]

    def info(self) -> dict[str, Any]:
        """What is served, and within which limits."""
        return {
            "model": self.name,
            "task": "image-classification",
            "labels": self.labels,
            "calibrated": self.classifier.temperature is not None,
            "limits": vars(self.settings),
            "versions": {"hf_kdmri": __version__} | {name: version(name) for name in ("transformers", "timm", "torch")},
            "notice": NOTICE,
        }


def create_app(service: Service) -> FastAPI:
    """Put a service behind its endpoints.

    Args:
        service: Closed by the caller.

    Returns:
        The ASGI application. There is no page of documentation, as it would load scripts from elsewhere; the
        description itself is at `/openapi.json`.
    """
    app = FastAPI(title="kdmri serve", description=NOTICE, version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(AccessLog)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(HTTPException)
    async def no_such_endpoint(request: Request, error: HTTPException) -> JSONResponse:
        return SafeJSON({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return SafeJSON({"error": "the server failed; its log says why"}, 500)

    answers: dict[int | str, dict[str, Any]] = {200: {"model": list[Score] | list[list[Score]]}}
    answers |= {status: {"model": Problem} for status in (400, 408, 413, 422, 503, 504)}

    @app.post("/", response_model=None, responses=answers, openapi_extra=_REQUEST_BODY)
    @app.post("/models/{name:path}", response_model=None, responses=answers, openapi_extra=_REQUEST_BODY)
    async def classify(request: Request) -> JSONResponse:
        """Classify an image, or several."""
        return await service.answer(request)

    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        """Whether requests are taken: from the first answer on, always, as the model is loaded before."""
        return SafeJSON({"status": "ready"})

    @app.get("/", response_model=None)
    @app.get("/info", response_model=None)
    async def info() -> JSONResponse:
        """What is served."""
        return SafeJSON(service.info())

    return app
