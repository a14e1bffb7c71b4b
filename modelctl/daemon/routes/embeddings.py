"""POST /api/embed, /api/embeddings and /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from modelctl.api import native, openai
from modelctl.daemon.answers import Later
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import Route, service
from modelctl.errors import BadRequest
from modelctl.model import Model


async def embed(request: Request) -> ASGIApp:
    """No input: the model is loaded, or with `keep_alive` 0 unloaded."""
    asked = await read(request, native.EmbedRequest)
    inputs = _texts(asked.input)
    desk = service(request)
    job = await desk.job(asked.model, asked.lora, asked.options, keep_alive=asked.keep_alive)
    await _check_dimensions(job.model, asked.dimensions)

    async def make() -> Response:
        if not inputs:
            await desk.load(job)
            return reply(native.EmbedReply(job.asked, []))
        got = await desk.embed(job, inputs, truncate=asked.truncate is not False)
        duration = time.perf_counter_ns() - job.started
        vectors = _shortened(got.vectors, asked.dimensions)
        return reply(native.EmbedReply(job.asked, vectors, duration, job.load_ns, got.n_tokens))

    return Later(make)


async def embed_one(request: Request) -> ASGIApp:
    """The older form."""
    asked = await read(request, native.EmbeddingsRequest)
    desk = service(request)
    job = await desk.job(asked.model, asked.lora, asked.options, keep_alive=asked.keep_alive)

    async def make() -> Response:
        if not asked.prompt:
            await desk.load(job)
            return reply(native.EmbeddingsReply([]))
        return reply(native.EmbeddingsReply((await desk.embed(job, [asked.prompt])).vectors[0]))

    return Later(make)


async def embed_openai(request: Request) -> ASGIApp:
    asked = await read(request, openai.EmbeddingRequest)
    inputs = _texts(asked.input)
    if not inputs:
        raise BadRequest("input must be text, or a list of texts, with at least one word")
    if asked.encoding_format not in (None, "float", "base64"):
        raise BadRequest(f"encoding_format must be float or base64, not {asked.encoding_format!r}")
    desk = service(request)
    job = await desk.job(asked.model, asked.lora)
    await _check_dimensions(job.model, asked.dimensions)

    async def make() -> Response:
        got = await desk.embed(job, inputs)
        encode = _base64 if asked.encoding_format == "base64" else list
        vectors = _shortened(got.vectors, asked.dimensions)
        data = [openai.Embedding(index, encode(vector)) for index, vector in enumerate(vectors)]
        return reply(openai.EmbeddingReply(data, job.asked, openai.EmbeddingUsage(got.n_tokens, got.n_tokens)))

    return Later(make)


def _texts(given: object) -> list[str]:
    """Raises `BadRequest` for what is neither a text nor a list of texts; "" and null are no texts."""
    texts: list[Any] = given if isinstance(given, list) else [] if given in (None, "") else [given]
    for text in texts:
        if not isinstance(text, str):
            hint = "token ids are not accepted: send the texts" if isinstance(text, int | list) else None
            raise BadRequest("invalid input type: input must be text, or a list of texts", hint=hint)
    return texts


async def _check_dimensions(model: Model, asked: int | None) -> None:
    """Raises `BadRequest` when the model has not so many."""
    if asked is None:
        return
    most = (await asyncio.to_thread(model.base_info)).embedding_length
    if not 1 <= asked <= most:
        raise BadRequest(f"dimensions must be from 1 to {most}, as many as {model.name!r} has, not {asked}")


def _shortened(vectors: list[list[float]], dimensions: int | None) -> list[list[float]]:
    """The first `dimensions` of each, L2 norm 1 again."""
    return vectors if dimensions is None else [_normalised(vector[:dimensions]) for vector in vectors]


def _normalised(vector: list[float]) -> list[float]:
    norm = math.hypot(*vector) or 1.0
    return [value / norm for value in vector]


def _base64(vector: list[float]) -> str:
    """As little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ROUTES = [
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embed_one, methods=["POST"]),
    Route("/v1/embeddings", embed_openai, methods=["POST"]),
]
