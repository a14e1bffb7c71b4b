"""What a call is given, in its many forms, as prompts with one of everything each. All raise `BadRequest`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from modelctl.errors import BadRequest, ModelctlError
from modelctl.runner.frames import Prompt
from modelctl.template.conversation import Message

_A_CHAT = 'a list like [{"role": "user", "content": "Hi"}]'


def texts(prompts: Any) -> list[Any]:
    """One prompt or many, as many."""
    return [prompts] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else list(prompts)


def chats(messages: Any) -> list[Any]:
    """One conversation or many, as many."""
    given = [messages] if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable) else list(messages)
    return [given] if given and isinstance(given[0], Mapping) else given


def raw(text: Any) -> Prompt:
    if not isinstance(text, str):
        raise BadRequest(f"a prompt is a text, not {text!r}", hint="conversations go to chat()")
    return Prompt(raw=text, truncate=False)


def messages(chat: Any) -> list[Message]:
    """At least one; keys with None count as left out, as in what OpenAI's client returns."""
    if not isinstance(chat, Sequence) or isinstance(chat, str) or not chat:
        raise BadRequest(f"a conversation is {_A_CHAT}, not {chat!r}", hint="raw prompts go to generate()")
    return [_message(message, i) for i, message in enumerate(chat)]


def _message(message: Any, at: int) -> Message:
    try:
        given = {key: value for key, value in message.items() if value is not None}
        if not given.keys() & {"content", "tool_calls"}:
            raise ValueError("it has no content")
        return msgspec.convert(given, Message)
    except (AttributeError, ValueError) as error:
        raise BadRequest(f"message {at} cannot be read: {error}", hint=f"a conversation is {_A_CHAT}") from None


def one_each(name: str, given: Any, kind: type | tuple[type, ...], what: str, n: int) -> list[Any]:
    """`given` for each of n prompts, or one of it a prompt. None is a value like any other."""
    if given is None or isinstance(given, kind):
        return [given] * n
    each = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if wrong := [one for one in each if one is not None and not isinstance(one, kind)]:
        raise BadRequest(f"{name} cannot be {wrong[0]!r}", hint=f"give one {name} for all, or a list, one for each")
    if len(each) != n:
        raise BadRequest(f"{name} has {len(each)} entries for {n} {what}", hint=f"give one {name} for all, or {n}")
    return each


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Begins an error's message with the place of what is wrong."""
    try:
        yield
    except ModelctlError as error:
        error.message = f"{where}{error.message}"
        error.args = (error.message,)
        raise
