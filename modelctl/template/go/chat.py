"""A conversation through a Go template, in one of Ollama's three ways.

Fill in the middle: a suffix is given; one run with .Prompt and .Suffix. Messages: the template names .Messages; one run
with all of them. Legacy: one run for each exchange, with .System, .Prompt and .Response, the last one cut off at
.Response, where the model goes on.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from modelctl.errors import BadRequest
from modelctl.template.conversation import Conversation, Message
from modelctl.template.go import data
from modelctl.template.go.compile import Program
from modelctl.template.go.cut import cut
from modelctl.template.go.funcs import FUNCTIONS
from modelctl.template.go.nodes import Action, Command, Field, Pipe, Tree, names
from modelctl.template.go.parser import parse
from modelctl.template.go.values import printable
from modelctl.template.limits import MAX_SOURCE, TemplateLimit, check_size

_FILL = "send the request without a suffix, or to a model made for code"
_PAUSE = "\n\n"  # between messages that become one


class GoTemplate:
    """A Modelfile's TEMPLATE, parsed. Raises `GoTemplateError` when it does not parse."""

    def __init__(self, source: str) -> None:
        self.source = source
        trees = _parse(source)
        self.names = _names(trees)
        if not self.names & {"Messages", "Response"}:
            trees = _with_response(trees)
        self._program = Program(source, trees)
        self._last_run = Program(source, cut(trees))

    def render(self, conversation: Conversation) -> str:
        system, messages = collate(conversation.messages)
        think = _think(conversation.think)
        if conversation.suffix:
            if "Suffix" not in self.names:
                raise BadRequest("this model's TEMPLATE has no .Suffix: it can't fill in the middle", hint=_FILL)
            text = self._program.run(
                {"Prompt": _prefix(messages), "Suffix": conversation.suffix, "Response": ""} | think
            )
        elif "Messages" in self.names:
            text = self._program.run(_whole(conversation, system, messages) | think)
        else:
            text = self._exchanges(messages, think)
        return printable(text)

    def _exchanges(self, messages: list[Message], think: dict[str, Any]) -> str:
        *done, last = exchanges(messages)
        parts: list[str] = []
        for exchange in done:
            parts.append(self._program.run(exchange | think))
            check_size(sum(map(len, parts)))
        return "".join(parts) + self._last_run.run(last | think)


def variables(source: str) -> set[str]:
    """The field names a template uses: .Messages, .Suffix, .Tools, .Think and all others, without the dot."""
    return _names(_parse(source))


def _parse(source: str) -> dict[str, Tree]:
    if len(source) > MAX_SOURCE:
        raise TemplateLimit(f"the template is larger than {MAX_SOURCE >> 10} kB")
    try:
        return parse(source, FUNCTIONS)
    except RecursionError:
        raise TemplateLimit("the template is nested too deeply") from None


def _names(trees: dict[str, Tree]) -> set[str]:
    return {name for tree in trees.values() for name in names(tree.body)}


def _with_response(trees: dict[str, Tree]) -> dict[str, Tree]:
    """A template that says nothing of the answer gets it at its end."""
    main = trees[""]
    response = Action(0, Pipe(0, (Command(0, (Field(0, ("Response",)),)),)))
    return trees | {"": Tree(main.name, (*main.body, response), main.n_slots)}


def _think(think: bool | str | None) -> dict[str, Any]:
    return {
        "Think": bool(think),
        "ThinkLevel": think if isinstance(think, str) else "",
        "IsThinkSet": think is not None,
    }


def _prefix(messages: list[Message]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "user"), "")


def _whole(conversation: Conversation, system: str, messages: list[Message]) -> dict[str, Any]:
    return {
        "System": system,
        "Messages": [data.message(m) for m in messages],
        "Tools": data.tools(conversation.tools),
        "Response": "",
    }


def collate(messages: list[Message]) -> tuple[str, list[Message]]:
    """All system texts as one, and the messages with neighbours of one role merged; tool results stay apart."""
    merged: list[Message] = []
    for m in messages:
        if merged and merged[-1].role == m.role and m.role != "tool":
            merged[-1] = _merge(merged[-1], m)
        else:
            merged.append(m)
    return _PAUSE.join(m.content for m in messages if m.role == "system"), merged


def _merge(a: Message, b: Message) -> Message:
    thinking, calls = a.thinking or b.thinking, a.tool_calls + b.tool_calls
    return replace(a, content=a.content + _PAUSE + b.content, thinking=thinking, tool_calls=calls)


def exchanges(messages: list[Message]) -> list[dict[str, str]]:
    """The legacy loop's runs; there is always a last one. Tool results, which it has no place for, are left out."""
    runs: list[dict[str, str]] = []
    now = {"System": "", "Prompt": "", "Response": ""}
    slots = {"system": "System", "user": "Prompt", "assistant": "Response"}
    ends = {"system": ("Prompt", "Response"), "user": ("Response",), "assistant": ()}
    for m in messages:
        if m.role not in slots:
            continue
        if any(now[slot] for slot in ends[m.role]):
            runs.append(now)
            now = {"System": "", "Prompt": "", "Response": ""}
        slot = slots[m.role]
        now[slot] = _PAUSE.join(filter(None, (now[slot], m.content)))
    return [*runs, now]
