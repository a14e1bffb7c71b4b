"""`Modelfile` -> text, in one canonical form: `parse(dump(x)) == x`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from . import nodes
from .adapter_rule import read_bare
from .nodes import Instruction, Modelfile
from .parameters import Scalar
from .paths import check_path
from .source import BLANKS, Mistake, ModelfileError, Problem, Source
from .values import read_value

Reader = Callable[[str], str | None]


def dump(modelfile: Modelfile) -> str:
    """One instruction after another, in capitals, its value in quotes only where it needs them. Raises
    `ModelfileError` for a text that no quoting can hold: one with `\"""` at the end of a line."""
    return "".join(f"{dump_instruction(node)}\n" for node in modelfile.instructions)


def tidy(modelfile: Modelfile) -> str:
    """The same for a Modelfile that was parsed, with its comments kept, and one blank line where there were some."""
    lines: list[str] = []
    pos = 0
    for node in modelfile.instructions:
        assert node.span is not None
        lines += [*_gap(modelfile.source[pos : node.span.first], pos), dump_instruction(node)]
        pos = node.span.last
    lines += _gap(modelfile.source[pos:] + "\n", pos)
    return "\n".join(lines).strip("\n") + "\n"


def dump_instruction(node: Instruction) -> str:
    keyword = type(node).__name__.upper()
    match node:
        case nodes.From(path) | nodes.Draft(path):
            return f"{keyword} {_written(keyword, path, _as_path)}"
        case nodes.Adapter(path, name, scale):
            clauses = f" AS {name}" if name is not None else ""
            clauses += f" SCALE {scale!r}" if scale is not None else ""
            return f"ADAPTER {_written(keyword, path, read_bare)}{clauses}"
        case nodes.Parameter(name, value):
            return f"PARAMETER {name} {_parameter(value)}"
        case nodes.Message(role, content):
            return f"MESSAGE {role} {_written(keyword, content, _as_text)}"
        case nodes.Template(text) | nodes.System(text) | nodes.License(text):
            return f"{keyword} {_written(keyword, text, _as_text)}"
        case nodes.Requires(word) | nodes.Renderer(word) | nodes.Parser(word) | nodes.Capability(word):
            return f"{keyword} {word}"


def _parameter(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _written("PARAMETER", value, _as_text) if isinstance(value, str) else repr(value)


def _written(keyword: str, text: str, read: Reader) -> str:
    """`text` in the first way of quoting it that reads back as the same."""
    quotes = ("", '"', '"""') if "\n" not in text else ('"""', '"')
    for written in (f"{quote}{text}{quote}" for quote in quotes):
        if "\0" not in text and read(written) == text:
            return written
    hint = 'look for """ at the end of one of its lines'
    raise ModelfileError([Problem(f"the text of this {keyword} cannot be written in a Modelfile", hint)])


def _as_text(written: str) -> str | None:
    try:
        value = read_value(Source(written, ""), 0, lines=True)
    except Mistake:
        return None
    return value.text if written and value.end == len(written) else None


def _as_path(written: str) -> str | None:
    try:
        value = read_value(Source(written, ""), 0, lines=False)
        check_path(value, "")
    except Mistake:
        return None
    return value.text if written and value.end == len(written) else None


def _gap(text: str, pos: int) -> Iterator[str]:
    """The comments in what stands between two instructions, and a single blank line for many."""
    lines: Iterable[str] = (line.strip(BLANKS) for line in re.split(r"\r\n|\r|\n", text)[bool(pos) : -1])
    blank = False
    for line in lines:
        if line or not blank:
            yield line
        blank = not line
