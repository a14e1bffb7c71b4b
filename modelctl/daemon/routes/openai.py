"""OpenAI's routes: /v1/models, /v1/chat/completions, /v1/completions."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from modelctl.api import openai
from modelctl.daemon.answers import Answer
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.errors import openai_body
from modelctl.daemon.routes import service
from modelctl.daemon.service import Job, Service, json_schema, logprobs, refuse_unsupported
from modelctl.errors import BadRequest, ModelctlError
from modelctl.model import Model
from modelctl.runner import frames
from modelctl.runner.frames import Delta, Prompt
from modelctl.store import Ref
from modelctl.template.conversation import Conversation, Message

DEFAULTS = {"temperature": 1.0, "top_p": 1.0}  # OpenAI's, where neither request nor Modelfile says otherwise
FINGERPRINT = "fp_modelctl"


async def chat(request: Request) -> ASGIApp:
    asked = await read(request, openai.ChatRequest)
    desk = service(request)
    model, scales = await desk.model_and_scales(asked.model, asked.lora)
    refuse_unsupported(model, tools=asked.tools)
    if not asked.messages:
        raise BadRequest("[] is too short - 'messages'")
    job = desk.job(
        asked.model,
        model,
        scales,
        Prompt(None, _conversation(model, asked.messages), model.template),
        options=_options(model, asked, asked.max_completion_tokens or asked.max_tokens),
        json_schema=_schema(asked.response_format),
        logprobs=logprobs(asked.logprobs, asked.top_logprobs),
    )
    return _answer(desk, job, asked, chat=True)


async def complete(request: Request) -> ASGIApp:
    asked = await read(request, openai.CompletionRequest)
    desk = service(request)
    model, scales = await desk.model_and_scales(asked.model, asked.lora)
    refuse_unsupported(model, echo=asked.echo)
    _only_one("best_of", asked.best_of)
    messages = [Message("system", model.system)] if model.system else []
    messages.append(Message("user", _one_prompt(asked.prompt)))
    job = desk.job(
        asked.model,
        model,
        scales,
        Prompt(None, Conversation(messages, asked.suffix or ""), model.template),
        options=_options(model, asked, asked.max_tokens),
        logprobs=logprobs(asked.logprobs is not None, asked.logprobs),
    )
    return _answer(desk, job, asked, chat=False)


async def models(request: Request) -> Response:
    refs = await asyncio.to_thread(service(request).store.list)
    return reply(openai.ModelList([_card(ref) for ref in refs]))


async def one_model(request: Request) -> Response:
    """Mixes are models too: `tutor+math=0.7` is found when it would be served."""
    asked = request.path_params["model"]
    model, _ = await service(request).model_and_scales(asked, None)
    return reply(openai.ModelCard(asked, int(model.modified), "library"))


def _card(ref: Ref) -> openai.ModelCard:
    return openai.ModelCard(ref.name.short, int(ref.modified), ref.name.namespace)


def _answer(desk: Service, job: Job, asked: openai.SamplingRequest, *, chat: bool) -> ASGIApp:
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    return Answer(lambda: desk.run(job), Sse(job, chat=chat, usage=usage), stream=bool(asked.stream))


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


def _options(model: Model, asked: openai.SamplingRequest, max_tokens: int | None) -> dict[str, Any]:
    """As Ollama's options."""
    _only_one("n", asked.n)
    if max_tokens is not None and max_tokens < 1:
        raise BadRequest(f"max_tokens must be above 0, not {max_tokens}")
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "seed": asked.seed,
        "stop": [asked.stop] if isinstance(asked.stop, str) else asked.stop,
        "num_predict": max_tokens,
    }
    defaults = {name: value for name, value in DEFAULTS.items() if name not in model.parameters}
    return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def _only_one(what: str, value: int | None) -> None:
    if value is not None and value != 1:
        raise BadRequest(f"{what} must be 1, not {value}", hint="send one request for each answer")


def _schema(response_format: Mapping[str, Any] | None) -> str:
    match response_format:
        case None | {"type": "text"}:
            return ""
        case {"type": "json_object"}:
            return json_schema("json")
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json_schema(schema)
    raise BadRequest("response_format must have the type text, json_object, or json_schema with a schema")


class Sse:
    """OpenAI's dialect: server-sent events, the last of them `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, *, chat: bool, usage: bool) -> None:
        self._job = job
        self._chat = chat
        self._usage = usage
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}"
        self._created = int(time.time())
        self._started = False
        self._offset = 0  # characters so far

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        if delta.text or delta.logprobs or not self._started:
            yield self._event([self._chunk(delta)])
        if delta.done is not None:
            yield self._event([self._chunk(Delta(delta.id, ""), _finish(delta.done))])
            if self._usage:
                yield self._event([], _usage(delta.done))
            yield b"data: [DONE]\n\n"

    def whole(self, delta: Delta) -> bytes:
        finish = _finish(delta.done) if delta.done else None
        choice = self._chat_choice(delta, finish) if self._chat else self._completion_choice(delta, finish)
        usage = _usage(delta.done) if delta.done else None
        return msgspec.json.encode(self._reply("chat.completion", [choice], usage))

    def error(self, error: ModelctlError) -> bytes:
        return b"data: " + openai_body(error) + b"\n\n"

    def _event(self, choices: list[Any], usage: openai.Usage | None = None) -> bytes:
        return b"data: " + msgspec.json.encode(self._reply("chat.completion.chunk", choices, usage)) + b"\n\n"

    def _reply(self, object: str, choices: list[Any], usage: openai.Usage | None) -> openai.Reply:
        object = object if self._chat else "text_completion"
        return openai.Reply(self._id, object, self._created, self._job.asked, choices, FINGERPRINT, usage)

    def _chunk(self, delta: Delta, finish: str | None = None) -> openai.ChatChunkChoice | openai.CompletionChoice:
        if not self._chat:
            return self._completion_choice(delta, finish)
        said = openai.MessageDelta(None, None if finish else delta.text)
        if not self._started:
            said.role, self._started = "assistant", True
        return openai.ChatChunkChoice(0, said, finish, _chat_logprobs(delta))

    def _chat_choice(self, delta: Delta, finish: str | None) -> openai.ChatChoice:
        return openai.ChatChoice(0, openai.AnswerMessage("assistant", delta.text), finish, _chat_logprobs(delta))

    def _completion_choice(self, delta: Delta, finish: str | None) -> openai.CompletionChoice:
        self._started = True
        logprobs = _completion_logprobs(delta, self._offset)
        self._offset += len(delta.text)
        return openai.CompletionChoice(0, delta.text, finish, logprobs)


def _finish(done: frames.Done) -> str:
    return "length" if done.reason == "length" else "stop"


def _usage(done: frames.Done) -> openai.Usage:
    cached = openai.PromptTokensDetails(done.cached_tokens)
    return openai.Usage(done.prompt_tokens, done.eval_tokens, done.prompt_tokens + done.eval_tokens, cached)


def _chat_logprobs(delta: Delta) -> openai.ChatLogprobs | None:
    if not delta.logprobs:
        return None
    return openai.ChatLogprobs(
        [
            openai.TokenLogprob(
                entry.token,
                entry.logprob,
                entry.bytes,
                [openai.TopLogprob(other.token, other.logprob, other.bytes) for other in entry.top],
            )
            for entry in delta.logprobs
        ]
    )


def _completion_logprobs(delta: Delta, offset: int) -> openai.CompletionLogprobs | None:
    if not delta.logprobs:
        return None
    made = openai.CompletionLogprobs([], [], [], [])
    for entry in delta.logprobs:
        made.tokens.append(entry.token)
        made.token_logprobs.append(entry.logprob)
        made.top_logprobs.append({other.token: other.logprob for other in entry.top})
        made.text_offset.append(offset)
        offset += len(entry.token)
    return made


ROUTES = [
    Route("/v1/models", models),
    Route("/v1/models/{model:path}", one_model),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", complete, methods=["POST"]),
]
