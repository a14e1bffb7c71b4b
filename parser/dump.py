"""`Modelfile` -> text, in the one canonical form: `parse(dump(x)) == x`."""

from __future__ import annotations

from . import nodes
from .adapter_rule import split_path
from .nodes import Instruction, Modelfile
from .source import Mistake, ModelfileError, Problem, Source
from .values import read_value


def dump(modelfile: Modelfile) -> str:
    """One instruction after another, each from the start of a line, values quoted only where they need it. Raises
    `ModelfileError` for the rare text that the language cannot spell (a line in it ends with three quotes)."""
    return "".join(f"{dump_instruction(node)}\n" for node in modelfile.instructions)


def dump_instruction(node: Instruction) -> str:
    match node:
        case nodes.From(value):
            return f"FROM {_path('FROM', value)}"
        case nodes.Adapter(path, name, scale):
            clauses = f" AS {name}" if name is not None else ""
            clauses += f" SCALE {scale!r}" if scale is not None else ""
            return f"ADAPTER {_adapter_path(path)}{clauses}"
        case nodes.Parameter(name, value):
            return f"PARAMETER {name} {_parameter(name, value)}"
        case nodes.Message(role, content):
            return f"MESSAGE {role} {_text('MESSAGE', content)}"
        case nodes.Template(text) | nodes.System(text) | nodes.License(text):
            keyword = type(node).__name__.upper()
            return f"{keyword} {_text(keyword, text)}"
        case nodes.Draft(path):
            return f"DRAFT {_path('DRAFT', path)}"
        case nodes.Requires(word) | nodes.Renderer(word) | nodes.Parser(word) | nodes.Capability(word):
            keyword = type(node).__name__.upper()
            return f"{keyword} {_text(keyword, word)}"


def _parameter(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(f"PARAMETER {name}", value) if isinstance(value, str) else repr(value)


def _path(keyword: str, path: str) -> str:
    quoting = not set(path).isdisjoint("*?")  # in quotes they are no wildcards
    return _text(keyword, path, bare=not quoting)


def _adapter_path(path: str) -> str:
    for quote in ("", '"', '"""'):
        written = f"{quote}{path}{quote}"
        if split_path(written) == path:
            return written
    raise _unspeakable("ADAPTER")


def _text(what: str, text: str, bare: bool = True) -> str:
    """`text` as a value, by the first way of quoting it that reads back as the same text."""
    for quote in ("", '"', '"""'):
        written = f"{quote}{text}{quote}"
        if (quote or (bare and text)) and _read(written) == (text, quote):
            return written
    raise _unspeakable(what)


def _read(written: str) -> tuple[str, str] | None:
    try:
        value = read_value(Source(written, ""), 0, lines=True)
    except Mistake:
        return None
    return (value.text, value.quote) if value.end == len(written) else None


def _unspeakable(what: str) -> ModelfileError:
    return ModelfileError(
        [Problem(f"no way of quoting can hold this {what}", 'look for """ at the end of a line in it')]
    )
