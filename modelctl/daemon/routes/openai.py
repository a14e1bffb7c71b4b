"""OpenAI's routes: /v1/models, /v1/chat/completions, /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from modelctl.api import openai
from modelctl.daemon.answers import Answer
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.routes import Route, service
from modelctl.daemon.service import Job, Service, json_schema, logprobs, refuse_unsupported
from modelctl.daemon.sse import Sse
from modelctl.errors import BadRequest
from modelctl.model import Model
from modelctl.runner.frames import Generate, Prompt
from modelctl.store import Ref
from modelctl.template.conversation import Conversation, Message

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}  # OpenAI's, where neither request nor Modelfile says otherwise
MAX_N = 8
MAX_BIAS = 100
SEEDS = 2**32 - 1  # the one after the last means a random one to llama.cpp


async def chat(request: Request) -> ASGIApp:
    asked = await read(request, openai.ChatRequest)
    desk = service(request)
    options = _options(asked, asked.max_completion_tokens or asked.max_tokens)
    job = await desk.job(asked.model, asked.lora, options, defaults=DEFAULTS)
    refuse_unsupported(job.model, tools=asked.tools)
    if not asked.messages:
        raise BadRequest("[] is too short - 'messages'")
    generation = job.generate(
        Prompt(None, _conversation(job.model, asked.messages), job.model.template),
        json_schema=_schema(asked.response_format),
        logprobs=logprobs(asked.logprobs, asked.top_logprobs),
        logit_bias=_logit_bias(asked.logit_bias),
    )
    return _answer(desk, job, asked, generation, chat=True)


async def complete(request: Request) -> ASGIApp:
    asked = await read(request, openai.CompletionRequest)
    desk = service(request)
    job = await desk.job(asked.model, asked.lora, _options(asked, asked.max_tokens), defaults=DEFAULTS)
    refuse_unsupported(job.model, echo=asked.echo)
    if asked.best_of not in (None, asked.n or 1):
        raise BadRequest(f"best_of must be as n is, {asked.n or 1}, not {asked.best_of}")
    messages = [Message("system", job.model.system)] if job.model.system else []
    messages.append(Message("user", _one_prompt(asked.prompt)))
    generation = job.generate(
        Prompt(None, Conversation(messages, asked.suffix or ""), job.model.template),
        logprobs=logprobs(asked.logprobs is not None, asked.logprobs),
        logit_bias=_logit_bias(asked.logit_bias),
    )
    return _answer(desk, job, asked, generation, chat=False)


async def models(request: Request) -> Response:
    """The stored names, then the adapters of those that are loaded, each as a model to pick."""
    desk = service(request)
    refs = await asyncio.to_thread(desk.store.list)
    adapters = [card for entry in desk.runners.loaded() for card in _adapter_cards(entry.model)]
    return reply(openai.ModelList([*map(_card, refs), *adapters]))


async def one_model(request: Request) -> Response:
    """Mixes are models too: `tutor+math=0.7` is found when it would be served."""
    asked = request.path_params["model"]
    job = await service(request).job(asked, None)
    return reply(openai.ModelCard(asked, int(job.model.modified), "library"))


def _card(ref: Ref) -> openai.ModelCard:
    return openai.ModelCard(ref.name.short, int(ref.modified), ref.name.namespace)


def _adapter_cards(model: Model) -> list[openai.ModelCard]:
    name = model.name.removesuffix(":latest")
    created = int(model.modified)
    return [
        openai.ModelCard(f"{name}+{ref.name}", created, "library", root=ref.digest, parent=model.name)
        for ref in model.adapters
    ]


def _answer(desk: Service, job: Job, asked: openai.SamplingRequest, generation: Generate, *, chat: bool) -> ASGIApp:
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    generations = _several(generation, asked.n or 1)
    dialect = Sse(job.asked, chat=chat, n=len(generations), usage=usage)
    return Answer(partial(desk.run, job, generations), dialect, stream=bool(asked.stream))


def _several(generation: Generate, n: int) -> list[Generate]:
    """The same with `n` different seeds: a given one and those after it."""
    seed = generation.sampling.seed
    seeds = [seed if seed < 0 else (seed + i) % SEEDS for i in range(n)]
    return [replace(generation, sampling=replace(generation.sampling, seed=seed)) for seed in seeds]


def _conversation(model: Model, asked: list[openai.Message]) -> Conversation:
    given = [_message(message) for message in asked]
    system = [Message("system", model.system)] if model.system and given[0].role != "system" else []
    return Conversation([*system, *model.messages, *given])


def _message(message: openai.Message) -> Message:
    role = "system" if message.role == "developer" else message.role
    return Message(role, _text(message.content), "", message.tool_calls or [], "", message.tool_call_id or "")


def _text(content: object) -> str:
    """Text, or a list of text parts. Raises `BadRequest`."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_part_text(part) for part in parts)


def _part_text(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise BadRequest('content must be text, or a list of {"type": "text", "text": …}')


def _one_prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("prompt must be text, or a list of one text")
    return prompt


def _options(asked: openai.SamplingRequest, max_tokens: int | None) -> dict[str, Any]:
    """As Ollama's options."""
    if asked.n is not None and not 1 <= asked.n <= MAX_N:
        raise BadRequest(f"n must be from 1 to {MAX_N}, not {asked.n}")
    if max_tokens is not None and max_tokens < 1:
        raise BadRequest(f"max_tokens must be above 0, not {max_tokens}")
    return {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "seed": asked.seed,
        "stop": [asked.stop] if isinstance(asked.stop, str) else asked.stop,
        "num_predict": max_tokens,
        "deterministic": asked.deterministic,
    }


def _logit_bias(asked: dict[str, float] | None) -> dict[int, float]:
    """Token id -> what is added to its logit. Raises `BadRequest`."""
    for token, bias in (asked or {}).items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise BadRequest(f"logit_bias must go from token ids to numbers; {token[:40]!r} is no token id")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise BadRequest(f"the logit_bias of token {token} must be from -{MAX_BIAS} to {MAX_BIAS}, not {bias:g}")
    return {int(token): bias for token, bias in (asked or {}).items()}


def _schema(response_format: Mapping[str, Any] | None) -> str:
    match response_format:
        case None | {"type": "text"}:
            return ""
        case {"type": "json_object"}:
            return json_schema("json")
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json_schema(schema)
    raise BadRequest("response_format must have the type text, json_object, or json_schema with a schema")


ROUTES = [
    Route("/v1/models", models),
    Route("/v1/models/{model:path}", one_model),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", complete, methods=["POST"]),
]
