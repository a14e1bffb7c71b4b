"""From a conversation to text to tokenise: cut so that typed text cannot become control tokens, and short enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from modelctl.errors import BadRequest
from modelctl.template.conversation import Conversation
from modelctl.template.limits import TemplateLimit

FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0xFFFFD  # Unicode's plane for private use: no letters, no whitespace
T = TypeVar("T")


class Template(Protocol):
    @property
    def source(self) -> str: ...

    def render(self, conversation: Conversation) -> str:
        """The prompt; `BadRequest` when the template fails on, or refuses, this conversation."""
        ...


class Piece(NamedTuple):
    """Part of a prompt. special: tokenise with special tokens parsed; otherwise it was typed, and is only text."""

    text: str
    special: bool


def pieces(template: Template, conversation: Conversation, control: Collection[str]) -> list[Piece]:
    """The prompt as pieces. No control token of `control` comes from a message, the suffix, a tool, or parts of them.

    Text without control strings gives one piece, and so tokenises as if this function were not there.
    """
    marks = _Marks(template, conversation, frozenset(control))
    exact = marks.render(marks.whole)
    if marks.has_parts() and _adds_control(exact, marked := marks.render(marks.first), marks.whole):
        return marked
    return exact


def _adds_control(exact: list[Piece], marked: list[Piece], control: re.Pattern[str]) -> bool:
    """Whether some control string is there only because the template glued typed parts together."""
    return _count(exact, control) != _count(marked, control)


def _count(parts: list[Piece], control: re.Pattern[str]) -> int:
    return sum(len(control.findall(part.text)) for part in parts if part.special)


class _Marks:
    """Replaces typed text by private characters before a render and puts it back afterwards."""

    def __init__(self, template: Template, conversation: Conversation, control: frozenset[str]) -> None:
        self.template = template
        self.conversation = conversation
        self.whole, self.first = _patterns(control)
        self.text = "\0".join(_strings(conversation))

    def has_parts(self) -> bool:
        return bool(self.first.search(self.text))

    def render(self, pattern: re.Pattern[str]) -> list[Piece]:
        typed = set(pattern.findall(self.text))
        if not typed:
            return [Piece(self.template.render(self.conversation), True)]
        private = _unused(self.text + self.template.source)
        marks = {text: next(private) for text in sorted(typed)}
        marked = _map_strings(self.conversation, lambda s: pattern.sub(lambda m: marks[m[0]], s))
        return _cut(self.template.render(marked), {mark: text for text, mark in marks.items()})


@lru_cache(maxsize=8)
def _patterns(control: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Any control string, longest first, and any character one starts with. Whitespace around them stays outside,
    for templates trim messages."""
    cores = sorted({core for c in control if (core := c.strip())}, key=len, reverse=True)
    never = r"(?!)"
    whole = "|".join(map(re.escape, cores)) or never
    first = "|".join(re.escape(c) for c in sorted({core[0] for core in cores})) or never
    return re.compile(whole), re.compile(first)


def _unused(text: str) -> Iterator[str]:
    present = set(text)
    return (char for code in range(FIRST_PRIVATE, LAST_PRIVATE) if (char := chr(code)) not in present)


def _cut(text: str, marks: dict[str, str]) -> list[Piece]:
    runs = re.split(f"([{''.join(marks)}]+)", text)
    parts = [Piece("".join(marks.get(c, c) for c in run) if i % 2 else run, i % 2 == 0) for i, run in enumerate(runs)]
    return [part for part in parts if part.text]


def _strings(conversation: Conversation) -> list[str]:
    found: list[str] = []
    _map_strings(conversation, lambda s: found.append(s) or s)  # type: ignore[func-returns-value]  # append, then s
    return found


def _map_strings(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """A copy with every string that came from outside changed, keys included."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {walk(k): walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list | tuple) else value

    return msgspec.convert(walk(msgspec.to_builtins(conversation)), Conversation)


def fit(
    template: Template,
    conversation: Conversation,
    control: Collection[str],
    n_max: int,
    count: Callable[[list[Piece]], int],
) -> list[Piece]:
    """The pieces of as much of the conversation as `count` finds to be at most `n_max` tokens.

    Messages go from the front, one by one; system messages and the last message always stay, so the result can still
    be too long. A start that the template refuses (many want a user first) is passed over.
    """
    messages = conversation.messages

    def attempt(start: int) -> tuple[int, list[Piece]]:
        for i in range(start, len(messages)):
            kept = [m for m in messages[:i] if m.role == "system"] + messages[i:]
            try:
                return i, pieces(template, msgspec.structs.replace(conversation, messages=kept), control)
            except TemplateLimit:
                raise
            except BadRequest:
                if i in (0, len(messages) - 1):
                    raise
        raise AssertionError("the last message always stays")

    best = pieces(template, conversation, control)
    if len(messages) < 2 or count(best) <= n_max:
        return best
    low, high, best = 1, len(messages) - 1, attempt(len(messages) - 1)[1]
    while low < high:
        middle = (low + high) // 2
        start, parts = attempt(middle)
        if start < high and count(parts) <= n_max:
            high, best = middle, parts
        else:
            low = middle + 1
    return best
