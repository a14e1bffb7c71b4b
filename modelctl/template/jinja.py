"""A GGUF's own chat template: Jinja, in a sandbox, with the names that transformers gives templates."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from modelctl.errors import BadRequest, ModelctlError
from modelctl.template import sandbox
from modelctl.template.conversation import Conversation, Message
from modelctl.template.limits import MAX_SOURCE, TemplateLimit

_HINT = "a TEMPLATE in the Modelfile replaces it"


class Refused(Exception):
    """A template called raise_exception."""


class JinjaTemplate:
    """Raises `BadRequest` with the line when the source does not parse."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        if len(source) > MAX_SOURCE:
            raise TemplateLimit(f"the model's chat template is larger than {MAX_SOURCE >> 10} kB")
        with _wording("is wrong"):
            self._template = _environment().from_string(source)

    def render(self, conversation: Conversation) -> str:
        if conversation.suffix:
            raise BadRequest("this model can't fill in the middle", hint="it takes a TEMPLATE with .Suffix")
        messages, prefill = _split_prefill(conversation.messages)
        names = _names(conversation) | self._tokens
        sandbox.new_render()
        with _wording("failed"):
            return self._template.render(messages=[_message(m) for m in messages], **names) + prefill


@contextmanager
def _wording(what: str) -> Iterator[None]:
    """Whatever a template makes Python raise is the template's fault."""
    try:
        yield
    except ModelctlError:
        raise
    except Refused as e:
        raise BadRequest(f"the model's chat template refuses this conversation: {e}") from None
    except jinja2.TemplateSyntaxError as e:
        raise BadRequest(f"the model's chat template {what} at line {e.lineno}: {e.message}", hint=_HINT) from None
    except RecursionError:
        raise TemplateLimit("the model's chat template recurses too deeply") from None
    except MemoryError:
        raise TemplateLimit("the model's chat template needs too much memory") from None
    except Exception as e:
        raise BadRequest(f"the model's chat template {what}{_line(e)}: {e}", hint=_HINT) from None


def _line(error: Exception) -> str:
    """Where in the template an error came up; jinja2 puts template lines into the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" at line {frames[-1].lineno}" if frames else ""


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
        "tool_calls": [_tool_call(call) for call in message.tool_calls],
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.content} | {k: v for k, v in optional.items() if v}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return {"type": "function", **call}
    return {"type": "function", **call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return Arguments(value) if isinstance(value, dict) else value


class Arguments(dict[str, Any]):
    """A call's arguments: an object to templates that take it apart, JSON text to those that print it or add to it."""

    def __str__(self) -> str:
        return _tojson(self)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


class GenerationTag(Extension):
    """{% generation %}…{% endgeneration %} marks training targets; a prompt only needs what is inside."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=1)
def _environment() -> sandbox.Sandbox:
    env = sandbox.Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], cache_size=0)
    env.add_filter("tojson", _tojson)
    env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return env


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Not jinja2's filter: that one escapes <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100:  # strftime pads as far as it is told
        raise TemplateLimit("strftime_now takes at most 100 characters")
    return datetime.now().strftime(form)
