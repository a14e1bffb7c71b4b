"""POST /api/generate and /api/chat."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from modelctl.api import native
from modelctl.daemon.answers import Answer, Mould, joined, timestamp
from modelctl.daemon.bodies import read, reply
from modelctl.daemon.errors import native_body
from modelctl.daemon.routes import Route, service
from modelctl.daemon.service import Job, Service, json_schema, logprobs, refuse_unsupported
from modelctl.errors import BadRequest, ModelctlError
from modelctl.model import Model
from modelctl.runner import frames
from modelctl.runner.frames import Delta, Prompt
from modelctl.template.conversation import Conversation, Message


async def generate(request: Request) -> ASGIApp:
    asked = await read(request, native.GenerateRequest)
    desk = service(request)
    job = await desk.job(asked.model, asked.lora, asked.options, keep_alive=asked.keep_alive)
    refuse_unsupported(job.model, images=asked.images, thinking=asked.think)
    prompt = _generate_prompt(job.model, asked)
    return await _respond(desk, asked, job, prompt, Ndjson(job, chat=False), empty=not (asked.prompt or asked.suffix))


async def chat(request: Request) -> ASGIApp:
    asked = await read(request, native.ChatRequest)
    desk = service(request)
    job = await desk.job(asked.model, asked.lora, asked.options, keep_alive=asked.keep_alive)
    images = any(message.images for message in asked.messages or [])
    refuse_unsupported(job.model, images=images, tools=asked.tools, thinking=asked.think)
    prompt = _chat_prompt(job.model, asked)
    return await _respond(desk, asked, job, prompt, Ndjson(job, chat=True), empty=not asked.messages)


async def _respond(
    desk: Service, asked: native.PromptRequest, job: Job, prompt: Prompt, dialect: Ndjson, *, empty: bool
) -> ASGIApp:
    prompt.truncate = asked.truncate is not False
    generation = job.generate(
        prompt,
        json_schema=json_schema(asked.format),
        logprobs=logprobs(asked.logprobs, asked.top_logprobs),
        shift=asked.shift is not False,
    )
    if empty:
        await desk.load(job)
        return reply(dialect.loaded("unload" if job.keep_alive == 0 else "load"))
    if asked.debug_render_only:
        return reply(dialect.rendered((await desk.render(job, prompt)).text))
    return Answer(partial(desk.run, job, [generation]), dialect, stream=asked.stream is not False)


def _generate_prompt(model: Model, asked: native.GenerateRequest) -> Prompt:
    if asked.raw:
        if asked.template or asked.system or asked.context:
            raise BadRequest("raw mode does not support template, system, or context")
        return Prompt(raw=asked.prompt or "")
    system = asked.system or model.system
    messages = [Message("system", system)] if system else []
    messages += [*model.messages, Message("user", asked.prompt or "")]
    return Prompt(None, Conversation(messages, asked.suffix or ""), asked.template or model.template)


def _chat_prompt(model: Model, asked: native.ChatRequest) -> Prompt:
    given = [_message(message) for message in asked.messages or []]
    messages = [*model.messages, *given]
    if model.system and given and given[0].role != "system":
        messages.insert(0, Message("system", model.system))
    return Prompt(None, Conversation(messages), model.template)


def _message(message: native.Message) -> Message:
    return Message(
        message.role,
        message.content or "",
        message.thinking or "",
        message.tool_calls or [],
        message.tool_name or "",
        message.tool_call_id or "",
    )


class Ndjson:
    """Ollama's dialect: one object a line."""

    media_type = "application/x-ndjson"

    def __init__(self, job: Job, *, chat: bool) -> None:
        self._job = job
        self._chat = chat
        self._token: Mould | None = None

    def piece(self, delta: Delta) -> bytes:
        if delta.logprobs:
            said = _line(self._reply(delta.text, delta.logprobs))
        else:
            said = self._said(delta.text) if delta.text else b""
        return said if delta.done is None else said + _line(self._reply(**self._end(delta.done)))

    def _said(self, text: str) -> bytes:
        if self._token is None:
            reply = self._reply(Mould.GAP)
            reply.created_at = Mould.GAP
            self._token = Mould(_line(reply))
        return self._token.cast(timestamp(), text)

    def whole(self, deltas: list[Delta]) -> bytes:
        delta = joined(deltas)
        end = self._end(delta.done) if delta.done else {}
        return msgspec.json.encode(self._reply(delta.text, delta.logprobs, **end))

    def error(self, error: ModelctlError) -> bytes:
        return native_body(error) + b"\n"

    def loaded(self, reason: str) -> native.Answer:
        return self._reply(done=True, done_reason=reason)

    def rendered(self, prompt: str) -> native.Answer:
        return self._reply(debug_info=native.DebugInfo(prompt))

    def _reply(
        self, text: str = "", logprobs: list[frames.Logprob] | None = None, *, done: bool = False, **rest: Any
    ) -> native.Answer:
        said = {"logprobs": [_logprob(entry) for entry in logprobs], **rest} if logprobs else rest
        if self._chat:
            message = native.Message("assistant", text)
            return native.ChatReply(model=self._job.asked, created_at=timestamp(), done=done, message=message, **said)
        return native.GenerateReply(model=self._job.asked, created_at=timestamp(), done=done, response=text, **said)

    def _end(self, done: frames.Done) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": done.reason,
            "total_duration": time.perf_counter_ns() - self._job.started,
            "load_duration": self._job.load_ns,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": done.prompt_ns,
            "eval_count": done.eval_tokens,
            "eval_duration": done.eval_ns,
            "queue_duration": done.queue_ns,
            "prompt_cached_count": done.cached_tokens,
            "lora": {name: scale for name, scale in self._job.scales.items() if scale},
        }


def _line(value: native.Answer) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _logprob(entry: frames.Logprob) -> native.Logprob:
    top = [native.TokenLogprob(other.token, other.logprob, other.bytes) for other in entry.top]
    return native.Logprob(entry.token, entry.logprob, entry.bytes, top)


ROUTES = [Route("/api/generate", generate, methods=["POST"]), Route("/api/chat", chat, methods=["POST"])]
