"""From a conversation to text to tokenise: cut so that typed text cannot become control tokens, and short enough."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from modelctl.errors import BadRequest
from modelctl.template.conversation import Conversation, Message
from modelctl.template.limits import TemplateLimit

ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0xFFFFD  # Unicode's plane for private use: no letters, no whitespace


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
    """The prompt as pieces. No control string of `control` in a special piece begins with a typed character, where
    typed is all that a conversation holds: contents, suffix, tools, calls and their parts. No unknown role makes one.

    Control strings in what was typed are replaced by private characters for the render, and put back as plain pieces.
    A template may also form some out of typed parts: by deleting what was between them, or by putting two messages
    side by side. That shows when the first characters alone are replaced too: then fewer control strings come out.
    Text without any of this gives one piece, and so tokenises as if this function were not there.
    """
    whole, first = _patterns(frozenset(control))
    typed = "\0".join(_strings(conversation))
    exact = _render(template, conversation, typed, whole)
    if odd := {m.role for m in conversation.messages if m.role} - ROLES:  # role "end" in <|{{ .Role }}|>
        first = re.compile("|".join([*map(re.escape, sorted(odd)), first.pattern]))
    if first.search(typed):
        marked = _render(template, conversation, typed, first)
        if Counter(whole.findall(exact.text)) - Counter(whole.findall(marked.text)):
            return marked.pieces()
    return exact.pieces()


class _Rendered(NamedTuple):
    text: str
    marks: dict[str, str]  # private character -> what was typed

    def pieces(self) -> list[Piece]:
        if not self.marks:
            return [Piece(self.text, True)]
        runs = re.split(f"([{''.join(self.marks)}]+)", self.text)
        parts = [Piece(self._typed(run) if i % 2 else run, i % 2 == 0) for i, run in enumerate(runs)]
        return [part for part in parts if part.text]

    def _typed(self, run: str) -> str:
        return "".join(self.marks[mark] for mark in run)


def _render(template: Template, conversation: Conversation, typed: str, pattern: re.Pattern[str]) -> _Rendered:
    """The prompt with private characters in place of what `pattern` finds in the typed text."""
    found = sorted(set(pattern.findall(typed)))
    if not found:
        return _Rendered(template.render(conversation), {})
    private = _unused(typed + template.source)
    marks = {text: next(private) for text in found}
    marked = _map_strings(conversation, lambda text: pattern.sub(lambda match: marks[match[0]], text))
    return _Rendered(template.render(marked), {mark: text for text, mark in marks.items()})


@lru_cache(maxsize=8)
def _patterns(control: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Any control string, longest first, and any character one starts with. Whitespace around them stays outside,
    for templates trim messages; letters and digits are no such character, for templates compare words."""
    cores = sorted({core for c in control if (core := c.strip())}, key=len, reverse=True)
    starts = sorted({core[0] for core in cores if not core[0].isalnum()})
    whole, first = ("|".join(map(re.escape, choices)) or "(?!)" for choices in (cores, starts))
    return re.compile(whole), re.compile(first)


def _unused(text: str) -> Iterator[str]:
    present = set(text)
    return (char for code in range(FIRST_PRIVATE, LAST_PRIVATE) if (char := chr(code)) not in present)


def _strings(conversation: Conversation) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _map_strings(conversation, note)
    return found


def _map_strings(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """A copy with every string changed that came from outside, keys of tools and arguments included."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {walk(key): walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list | tuple) else value

    def message(m: Message) -> Message:
        return Message(
            role=m.role if m.role in ROLES else change(m.role),
            content=change(m.content),
            thinking=change(m.thinking),
            tool_calls=walk(m.tool_calls),
            tool_name=change(m.tool_name),
            tool_call_id=change(m.tool_call_id),
        )

    return msgspec.structs.replace(
        conversation,
        messages=[message(m) for m in conversation.messages],
        suffix=change(conversation.suffix),
        tools=walk(conversation.tools),
    )


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
