"""A line that begins with no instruction: what was it meant to be?"""

from __future__ import annotations

from .names import nearest
from .parameters import PARAMETERS
from .source import Mistake, clipped, line_end, quoted
from .values import NAMES

_ALIASES = {
    "BASE": "FROM",
    "MODEL": "FROM",
    "LORA": "ADAPTER",
    "OPTION": "PARAMETER",
    "SET": "PARAMETER",
    "PROMPT": "TEMPLATE",
    "ASSISTANT": "MESSAGE assistant",
    "USER": "MESSAGE user",
}
_COMMENTS = ("//", ";", "--", "/*", "<!--", "%")
_ALL = "the instructions are " + ", ".join(NAMES)


class NoInstruction(Mistake):
    """The word is near none that is known: perhaps the line belongs to the text above it."""


def unknown(text: str, first: int, end: int) -> Mistake:
    """The mistake in the line at `first`, whose first word ends at `end`."""
    word = text[first:end]
    if not word or not word[0].isalnum():
        return _no_word(text, first)
    message = f"unknown instruction {quoted(word)}"
    if hint := _meant(word, text[end : line_end(text, end)].lstrip("=: \t").rstrip()):
        return Mistake(first, end, message, hint)
    return NoInstruction(first, end, message, _ALL)


def no_space(text: str, first: int, end: int) -> Mistake:
    """A known name, stuck to what follows: `FROM=llama3.2`."""
    name, rest = text[first:end].upper(), text[end : line_end(text, end)].lstrip("=: \t").rstrip()
    return Mistake(end, end + 1, f"expected a space after {name}, not {text[end]!r}", f"write {name} {rest}".rstrip())


def _no_word(text: str, first: int) -> Mistake:
    char = text[first]
    shown = repr(char) if char.isprintable() else f"the invisible character U+{ord(char):04X}"
    hint = "every line begins with an instruction, such as FROM or SYSTEM"
    if text.startswith(_COMMENTS, first):
        hint = "comments begin with #"
    elif text.startswith('"""', first):
        hint = 'no """ is open here; was an earlier one meant to stay open?'
    return Mistake(first, first + 1, f"expected an instruction, not {shown}", hint)


def _meant(word: str, rest: str) -> str | None:
    if word.lower() in PARAMETERS:
        return clipped(f"write PARAMETER {word.lower()} {rest}".rstrip(), 80)
    meant = _ALIASES.get(word.upper()) or nearest(word.upper(), NAMES)
    return f"did you mean {meant}?" if meant else None
