"""One rule an instruction: `(source, first, pos) -> node`, where the instruction's name begins at `first` and ends at
`pos`. The node's span says where parsing goes on. What was expected is worded where it is expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from . import nodes
from .adapter_rule import adapter
from .expect import refuse_glob, required
from .literals import COMMENT_HINT
from .names import nearest
from .nodes import Instruction, Span
from .parameters import PARAMETERS, ParameterError, check_value, find
from .source import BLANKS, Mistake, Source, line_end, quoted
from .values import NAMES, Value, read_value, read_word

Rule = Callable[[Source, int, int], Instruction]
ROLES = ("system", "user", "assistant")

_NAME = re.compile(r"[^\s=:\"]+")
_VERSION = re.compile(r"v?((?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)", re.ASCII)


def instruction(source: Source, first: int) -> Instruction:
    """The instruction whose name begins at `first`."""
    text = source.text
    name = _NAME.match(text, first)
    pos = name.end() if name else first
    rule = RULES.get(text[first:pos].upper())
    if rule is None or text[pos : pos + 1] not in BLANKS + "\r\n":
        raise _no_instruction(text, first, pos, known=rule is not None)
    return rule(source, first, pos)


def _no_instruction(text: str, first: int, pos: int, known: bool) -> Mistake:
    eol = line_end(text, first)
    word, rest = text[first:pos], text[pos:eol].lstrip("=: \t").rstrip()
    if known:
        return Mistake(pos, pos + 1, f"expected a space after {word}, not {text[pos]!r}", f"write {word} {rest}")
    if not word or not word[0].isprintable():
        char = text[first]
        message = f"expected an instruction, not the invisible character U+{ord(char):04X}"
        if char.isprintable():
            message = f"expected an instruction, not {char!r}"
        return Mistake(first, first + 1, message, "every line starts with a word such as FROM or SYSTEM")
    if word in PARAMETERS:
        return Mistake(first, pos, f"unknown instruction {quoted(word)}", f"write PARAMETER {word} {rest}")
    meant = nearest(word.upper(), NAMES)
    if word[0] in "/;-!%'" or not word[0].isalnum():
        hint = "comments start with #" if word.startswith(("//", ";", "--", "/*", "<!--", "%")) else _ALL
    else:
        hint = f"did you mean {meant}?" if meant else _ALL
    return Mistake(first, max(pos, first + 1), f"unknown instruction {quoted(word)}", hint)


_ALL = "the instructions are " + ", ".join(NAMES)


def _span(source: Source, first: int, value: Value) -> Span:
    return Span(first, value.start, value.end, value.end)


def _one_line(wanted: str, example: str, build: Callable[[str, Span], Instruction]) -> Rule:
    def rule(source: Source, first: int, pos: int) -> Instruction:
        value = read_value(source, pos, lines=False)
        required(source, first, pos, value, wanted, example)
        return build(value.text, _span(source, first, value))

    return rule


def _path(wanted: str, example: str, build: Callable[[str, Span], Instruction]) -> Rule:
    def rule(source: Source, first: int, pos: int) -> Instruction:
        value = read_value(source, pos, lines=False)
        required(source, first, pos, value, wanted, example)
        refuse_glob(value, source.text[first:pos])
        return build(value.text, _span(source, first, value))

    return rule


def _text(build: Callable[[str, Span], Instruction]) -> Rule:
    """A text that may be empty, as `SYSTEM ""` or, as in Ollama, as `SYSTEM` and a blank."""

    def rule(source: Source, first: int, pos: int) -> Instruction:
        value = read_value(source, pos, lines=True)
        name = source.text[first:pos]
        if not value.quote and not value.text and line_end(source.text, pos) == pos:
            raise Mistake(first, pos, f"{name} needs a text", f'put it on this line, or open it here with {name} """')
        return build(value.text, _span(source, first, value))

    return rule


def _requires(source: Source, first: int, pos: int) -> Instruction:
    value = read_value(source, pos, lines=False)
    required(source, first, pos, value, "a version", "REQUIRES 0.14.0")
    version = _VERSION.fullmatch(value.text)
    if not version:
        hint = COMMENT_HINT if " #" in value.text else "for example REQUIRES 0.14.0"
        raise Mistake(value.start, value.end, f"REQUIRES takes a version, not {quoted(value.text)}", hint)
    return nodes.Requires(version[1], span=_span(source, first, value))


def _capability(source: Source, first: int, pos: int) -> Instruction:
    value = read_value(source, pos, lines=False)
    required(source, first, pos, value, "a word", "CAPABILITY vision")
    if not re.fullmatch(r"[\w.-]+", value.text):
        hint = COMMENT_HINT if " #" in value.text else "write one CAPABILITY line for each"
        raise Mistake(value.start, value.end, f"CAPABILITY takes one word, not {quoted(value.text)}", hint)
    return nodes.Capability(value.text, span=_span(source, first, value))


def _message(source: Source, first: int, pos: int) -> Instruction:
    role = read_word(source, pos)
    required(source, first, pos, role, "a role and a text", "MESSAGE user Hello!")
    if role.text not in ROLES:
        plain = role.text.rstrip(":").lower()
        hint = f"write {plain}" if plain in ROLES else None
        raise Mistake(
            role.start, role.end, f"the role must be system, user or assistant, not {quoted(role.text)}", hint
        )
    value = read_value(source, role.end, lines=True)
    if not value.quote and not value.text:
        hint = f'put it on this line, or open it here with MESSAGE {role.text} """'
        raise Mistake(role.start, role.end, f"the message of {role.text} needs a text", hint)
    return nodes.Message(role.text, value.text, span=_span(source, first, value))


def _parameter(source: Source, first: int, pos: int) -> Instruction:
    name = read_word(source, pos)
    required(source, first, pos, name, "a name and a value", "PARAMETER temperature 0.7")
    try:
        spec = find(name.text)
    except ParameterError as error:
        raise _unknown_parameter(source, name, error) from None
    value = read_value(source, name.end, lines=spec.type is str)
    if not value.quote and not value.text:
        raise Mistake(name.start, name.end, f"{spec.name} needs a value", _example(spec.name))
    try:
        checked = check_value(spec.name, value.text)
    except ParameterError as error:
        raise Mistake(value.start, value.end, error.message, error.hint) from None
    assert not isinstance(checked, list)  # a text goes in, so no list comes out
    return nodes.Parameter(spec.name, checked, span=_span(source, first, value))


def _unknown_parameter(source: Source, name: Value, error: ParameterError) -> Mistake:
    known, sign, rest = re.match(r"(\w*)([=:]?)(.*)", name.text, re.DOTALL).groups()  # type: ignore[union-attr]  # always matches
    if known in PARAMETERS and sign:
        value = (rest + source.text[name.end : line_end(source.text, name.end)]).strip()
        start = name.start + len(known)
        return Mistake(
            start, start + 1, f"expected a space after {known}, not {sign!r}", f"write PARAMETER {known} {value}"
        )
    return Mistake(name.start, name.end, error.message, error.hint)


def _example(name: str) -> str:
    samples = {"temperature": "0.7", "stop": '"</s>"', "num_ctx": "4096", "use_mmap": "true"}
    default = PARAMETERS[name].default
    return f"for example PARAMETER {name} {samples.get(name, default if default is not None else 1)}"


RULES: Mapping[str, Rule] = {
    "FROM": _path("a model", "FROM ./model.gguf", lambda value, span: nodes.From(value, span=span)),
    "PARAMETER": _parameter,
    "TEMPLATE": _text(lambda text, span: nodes.Template(text, span=span)),
    "SYSTEM": _text(lambda text, span: nodes.System(text, span=span)),
    "ADAPTER": adapter,
    "MESSAGE": _message,
    "LICENSE": _text(lambda text, span: nodes.License(text, span=span)),
    "REQUIRES": _requires,
    "RENDERER": _one_line("a name", "RENDERER qwen3-coder", lambda name, span: nodes.Renderer(name, span=span)),
    "PARSER": _one_line("a name", "PARSER qwen3-coder", lambda name, span: nodes.Parser(name, span=span)),
    "DRAFT": _path("a path", "DRAFT ./draft.gguf", lambda path, span: nodes.Draft(path, span=span)),
    "CAPABILITY": _capability,
}
