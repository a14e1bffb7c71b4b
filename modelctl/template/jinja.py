"""A GGUF's own chat template: Jinja, in a sandbox, with the names that transformers gives templates."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modelctl.errors import BadRequest
from modelctl.template.conversation import Conversation, Message
from modelctl.template.limits import check_size


class Refused(Exception):
    """A template called raise_exception."""


class JinjaTemplate:
    def __init__(self, source: str, bos: str, eos: str) -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as e:
            raise BadRequest(f"the model's chat template is wrong at line {e.lineno}: {e.message}") from None

    def render(self, conversation: Conversation) -> str:
        messages, prefill = _split_prefill(conversation.messages)
        names = _names(conversation) | self._tokens
        try:
            text = self._template.render(messages=[_message(m) for m in messages], **names)
        except Refused as e:
            raise BadRequest(f"the model's chat template refuses this conversation: {e}") from None
        except jinja2.TemplateError as e:
            raise BadRequest(f"the model's chat template failed: {e}") from None
        check_size(len(text))
        return text + prefill


def _split_prefill(messages: list[Message]) -> tuple[list[Message], str]:
    """A last assistant message is the start of the answer: it follows the generation prompt as it stands."""
    if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        return messages[:-1], messages[-1].content
    return messages, ""


def _names(conversation: Conversation) -> dict[str, Any]:
    names: dict[str, Any] = {"tools": conversation.tools or None, "documents": None, "add_generation_prompt": True}
    if conversation.think is not None:  # Qwen and others ask the first, DeepSeek and Granite the second
        names |= {"enable_thinking": bool(conversation.think), "thinking": bool(conversation.think)}
    if isinstance(conversation.think, str):
        names["reasoning_effort"] = conversation.think
    return names


def _message(message: Message) -> dict[str, Any]:
    """In OpenAI's shape, as templates expect; what is not there is left out, for they ask whether it is defined."""
    optional = {
        "thinking": message.thinking,
        "reasoning_content": message.thinking,
        "tool_calls": [{"type": "function", **call} for call in message.tool_calls],
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.content} | {k: v for k, v in optional.items() if v}


class GenerationTag(Extension):
    """{% generation %}…{% endgeneration %} marks training targets; a prompt only needs what is inside."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], cache_size=0
    )
    env.filters["tojson"] = _tojson
    env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    del env.globals["lipsum"]
    return env


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Not jinja2's filter: that one escapes <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
