"""OpenAI's dialect: server-sent events, the last of them `[DONE]`; or one object with all choices."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from modelctl.api import openai
from modelctl.daemon.answers import Mould, joined
from modelctl.daemon.errors import openai_body
from modelctl.errors import ModelctlError
from modelctl.runner import frames
from modelctl.runner.frames import Delta

FINGERPRINT = "fp_modelctl"


@dataclass
class Choice:
    """What was sent of one of the answers."""

    index: int
    started: bool = False
    offset: int = 0  # characters
    token: Mould | None = None  # what is sent for one, after the first


class Sse:
    """Made for one request; `n` answers, told apart by the deltas' ids."""

    media_type = "text/event-stream"

    def __init__(self, model: str, *, chat: bool, n: int = 1, usage: bool = False) -> None:
        """`usage`: the stream ends with one more chunk that counts tokens."""
        self._model = model
        self._chat = chat
        self._usage = usage
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}"
        self._created = int(time.time())
        self._choices = [Choice(index) for index in range(n)]
        self._done: list[frames.Done] = []

    def piece(self, delta: Delta) -> bytes:
        choice = self._choices[delta.id]
        if delta.logprobs or not choice.started:
            said = self._event([self._chunk(choice, delta)])
        else:
            said = self._said(choice, delta.text) if delta.text else b""
        return said if delta.done is None else said + self._end(choice, delta.done)

    def _said(self, choice: Choice, text: str) -> bytes:
        if choice.token is None:
            choice.token = Mould(self._event([self._chunk(choice, Delta(choice.index, Mould.GAP))]))
        return choice.token.cast(text)

    def _end(self, choice: Choice, done: frames.Done) -> bytes:
        end = self._event([self._chunk(choice, Delta(choice.index, ""), _finish(done))])
        self._done.append(done)
        if len(self._done) < len(self._choices):
            return end
        return end + (self._event([], _usage(self._done)) if self._usage else b"") + b"data: [DONE]\n\n"

    def whole(self, deltas: list[Delta]) -> bytes:
        answers = [joined([delta for delta in deltas if delta.id == choice.index]) for choice in self._choices]
        choices = [self._choice(choice, answer) for choice, answer in zip(self._choices, answers, strict=True)]
        usage = _usage([answer.done for answer in answers if answer.done])
        return msgspec.json.encode(self._reply("chat.completion", choices, usage))

    def error(self, error: ModelctlError) -> bytes:
        return b"data: " + openai_body(error) + b"\n\n"

    def _event(self, choices: list[Any], usage: openai.Usage | None = None) -> bytes:
        return b"data: " + msgspec.json.encode(self._reply("chat.completion.chunk", choices, usage)) + b"\n\n"

    def _reply(self, object: str, choices: list[Any], usage: openai.Usage | None) -> openai.Reply:
        object = object if self._chat else "text_completion"
        return openai.Reply(self._id, object, self._created, self._model, choices, FINGERPRINT, usage)

    def _chunk(
        self, choice: Choice, delta: Delta, finish: str | None = None
    ) -> openai.ChatChunkChoice | openai.CompletionChoice:
        if not self._chat:
            return _completion_choice(choice, delta, finish)
        said = openai.MessageDelta(None, None if finish else delta.text)
        if not choice.started:
            said.role, choice.started = "assistant", True
        return openai.ChatChunkChoice(choice.index, said, finish, _chat_logprobs(delta))

    def _choice(self, choice: Choice, delta: Delta) -> openai.ChatChoice | openai.CompletionChoice:
        finish = _finish(delta.done) if delta.done else None
        if not self._chat:
            return _completion_choice(choice, delta, finish)
        said = openai.AnswerMessage("assistant", delta.text)
        return openai.ChatChoice(choice.index, said, finish, _chat_logprobs(delta))


def _completion_choice(choice: Choice, delta: Delta, finish: str | None) -> openai.CompletionChoice:
    choice.started = True
    logprobs = _completion_logprobs(delta, choice.offset)
    choice.offset += len(delta.text)
    return openai.CompletionChoice(choice.index, delta.text, finish, logprobs)


def _finish(done: frames.Done) -> str:
    return "length" if done.reason == "length" else "stop"


def _usage(done: list[frames.Done]) -> openai.Usage:
    """The answers have one prompt, counted once."""
    prompt = done[0].prompt_tokens
    generated = sum(one.eval_tokens for one in done)
    cached = openai.PromptTokensDetails(min(one.cached_tokens for one in done))
    return openai.Usage(prompt, generated, prompt + generated, cached)


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
