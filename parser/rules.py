"""One rule an instruction: `(source, first, pos) -> node`, where the instruction's name stands at [first, pos). What
was expected is worded where it is expected; what is wrong is raised as a `Mistake`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .adapter_rule import adapter
from .nodes import (
    Capability,
    Draft,
    From,
    Instruction,
    License,
    Message,
    Parameter,
    Parser,
    Renderer,
    Requires,
    Span,
    System,
    Template,
)
from .parameters import PARAMETERS, ParameterError, check_value, find
from .paths import read_path
from .source import BLANKS, Mistake, Source, line_end, quoted
from .unknown import first_word, no_space, unknown
from .values import COMMENT_HINT, Value, next_instruction, read_value, read_word, required

Rule = Callable[[Source, int, int], Instruction]
ROLES = ("system", "user", "assistant")

_VERSION = r"v?((?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)"
_ROLE_ALIASES = {"ai": "assistant", "bot": "assistant", "human": "user", "model": "assistant"}
_SAMPLES = {"temperature": "0.7", "num_ctx": "4096", "stop": '"</s>"'}


def instruction(source: Source, first: int) -> Instruction:
    """The instruction whose name begins at `first`."""
    text = source.text
    pos = first_word(text, first)
    rule = RULES.get(text[first:pos].upper())
    if rule is None or not text[first:pos].isascii():  # the upper case of a long s is S
        raise unknown(text, first, pos)
    if text[pos : pos + 1] not in BLANKS + "\r\n":
        raise no_space(text, first, pos)
    return rule(source, first, pos)


def _span(first: int, value: Value) -> Span:
    return Span(first, value.start, value.end, value.end)


def _path(wanted: str, example: str, build: Callable[[str, Span], Instruction]) -> Rule:
    def rule(source: Source, first: int, pos: int) -> Instruction:
        value = read_path(source, first, pos, wanted, example)
        return build(value.text, _span(first, value))

    return rule


def _text(build: Callable[[str, Span], Instruction]) -> Rule:
    """A text. It may be empty: `SYSTEM ""`, or, as scripts write it, `SYSTEM` and a blank."""

    def rule(source: Source, first: int, pos: int) -> Instruction:
        if source.text[pos : pos + 1] in "\r\n":
            name = source.text[first:pos].upper()
            hint = f'put it on this line; a longer one begins with {name} """ and ends with """'
            raise Mistake(first, pos, f"{name} needs a text", hint, next_instruction(source.text, pos))
        value = read_value(source, pos, lines=True)
        return build(value.text, _span(first, value))

    return rule


def _word(wanted: str, example: str, pattern: str, build: Callable[[str, Span], Instruction]) -> Rule:
    """Something short that `pattern` knows; its first group is what counts."""
    allowed = re.compile(pattern, re.ASCII)

    def rule(source: Source, first: int, pos: int) -> Instruction:
        value = required(source, first, pos, read_value(source, pos, lines=False), wanted, example)
        match = allowed.fullmatch(value.text)
        if not match:
            message = f"{source.text[first:pos].upper()} takes {wanted}, not {quoted(value.text)}"
            hint = COMMENT_HINT if " #" in value.text else f"for example {example}"
            raise Mistake(value.start, value.end, message, hint)
        return build(match[1], _span(first, value))

    return rule


def _message(source: Source, first: int, pos: int) -> Instruction:
    role = required(source, first, pos, read_word(source, pos), "a role and a text", "MESSAGE user Hello!")
    if role.text not in ROLES:
        plain = role.text.strip(":\"'").lower()
        meant = plain if plain in ROLES else _ROLE_ALIASES.get(plain)
        message = f"the role must be system, user or assistant, not {quoted(role.text)}"
        raise Mistake(role.start, role.end, message, f"write MESSAGE {meant}" if meant else None)
    value = read_value(source, role.end, lines=True)
    if not value.quote and not value.text:
        hint = f'put it on this line; a longer one begins with MESSAGE {role.text} """ and ends with """'
        resume = next_instruction(source.text, role.end)
        raise Mistake(first, role.end, "MESSAGE needs a text", hint, resume)
    return Message(role.text, value.text, span=_span(first, value))


def _parameter(source: Source, first: int, pos: int) -> Instruction:
    name = required(source, first, pos, read_word(source, pos), "a name and a value", "PARAMETER temperature 0.7")
    try:
        spec = find(name.text)
    except ParameterError as error:
        raise _unknown_parameter(source, name, error) from None
    value = read_value(source, name.end, lines=spec.type is str)
    if not value.quote and not value.text:
        example = _SAMPLES.get(spec.name, spec.default)
        hint = f"for example PARAMETER {spec.name} {example}" if example is not None else None
        raise Mistake(first, name.end, f"{spec.name} needs a value", hint)
    try:
        checked = check_value(spec.name, value.text)
    except ParameterError as error:
        raise Mistake(value.start, value.end, error.message, error.hint) from None
    assert not isinstance(checked, list)  # only a list gives a list
    return Parameter(spec.name, checked, span=_span(first, value))


def _unknown_parameter(source: Source, name: Value, error: ParameterError) -> Mistake:
    """`temperature=0.7` and `temperature: 0.7` name a parameter and lack a space."""
    known = re.split("[=:]", name.text, maxsplit=1)[0]
    if known not in PARAMETERS:
        return Mistake(name.start, name.end, error.message, error.hint)
    at = name.start + len(known)
    value = source.text[at + 1 : line_end(source.text, at)].strip()
    message = f"expected a space after {known}, not {source.text[at]!r}"
    return Mistake(at, at + 1, message, f"write PARAMETER {known} {value}".rstrip())


RULES: Mapping[str, Rule] = {
    "FROM": _path("a model", "FROM ./model.gguf", lambda value, span: From(value, span=span)),
    "PARAMETER": _parameter,
    "TEMPLATE": _text(lambda text, span: Template(text, span=span)),
    "SYSTEM": _text(lambda text, span: System(text, span=span)),
    "ADAPTER": adapter,
    "MESSAGE": _message,
    "LICENSE": _text(lambda text, span: License(text, span=span)),
    "REQUIRES": _word("a version", "REQUIRES 0.14.0", _VERSION, lambda word, span: Requires(word, span=span)),
    "RENDERER": _word("a name", "RENDERER qwen3-coder", r"(\S+)", lambda word, span: Renderer(word, span=span)),
    "PARSER": _word("a name", "PARSER qwen3-coder", r"(\S+)", lambda word, span: Parser(word, span=span)),
    "DRAFT": _path("a path", "DRAFT ./draft.gguf", lambda path, span: Draft(path, span=span)),
    "CAPABILITY": _word("one word", "CAPABILITY vision", r"([\w.-]+)", lambda word, span: Capability(word, span=span)),
}
