"""What is allowed in a Modelfile, and hardly what its author wants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from .nodes import (
    Capability,
    Draft,
    Instruction,
    License,
    Message,
    Modelfile,
    Parameter,
    Parser,
    Renderer,
    Requires,
    System,
    Template,
)
from .parameters import PARAMETERS
from .source import Problem, line_number

_NOT_YET = {
    Renderer: "the prompt is written by TEMPLATE, or by the template in the model file",
    Parser: "answers are passed on as the model writes them",
    Draft: "answers are computed without a draft model",
    Requires: "it names a version of Ollama",
    Capability: "capabilities are read from the model file and its template",
}
_SEVERAL = re.compile(r'"(?:,[ \t]*|[ \t]+)"|^\[\s*["\'].*\]$')
_ESCAPE = re.compile(r"\\[nrt]")
MAX_WARNINGS = 100


def warnings(modelfile: Modelfile) -> tuple[Problem, ...]:
    """What is kept and ignored, deprecated, overridden, or a trap: for `create` and `lint` to show. The first 100."""
    return tuple(islice(_warnings(modelfile), MAX_WARNINGS))


def _warnings(modelfile: Modelfile) -> Iterator[Problem]:
    winners = {_slot(node): node for node in modelfile.instructions}
    for node in modelfile.instructions:
        slot = _slot(node)
        if winners[slot] is not node and slot is not node:
            yield modelfile.problem(
                node, f"{slot} is set again{_in_line(modelfile, winners[slot])}", "remove one of them"
            )
        for message, hint in _about(node):
            yield modelfile.problem(node, message, hint)


def _slot(node: Instruction) -> object:
    """What the last such instruction sets; where they add up, the node itself."""
    match node:
        case Parameter(name) if name != "stop":
            return name
        case Template() | System() | Requires() | Renderer() | Parser():
            return type(node).__name__.upper()
    return node


def _in_line(modelfile: Modelfile, node: Instruction) -> str:
    return f" in line {line_number(modelfile.source, node.span.first)}, so this has no effect" if node.span else ""


def _about(node: Instruction) -> Iterator[tuple[str, str | None]]:
    match node:
        case Parameter(name, value):
            yield from _about_parameter(name, str(value))
        case Template(text) | System(text) | License(text) | Message(_, text):
            yield from _about_text(type(node).__name__.upper(), text)
        case Renderer() | Parser() | Draft() | Requires() | Capability():
            name = type(node).__name__.upper()
            yield f"{name} is kept and shown, but has no effect: {_NOT_YET[type(node)]}", None


def _about_parameter(name: str, value: str) -> Iterator[tuple[str, str | None]]:
    if PARAMETERS[name].deprecated:
        yield f"{name} is deprecated and has no effect", "remove this line"
    elif name == "stop" and _SEVERAL.search(value):
        yield "this is one stop text, quotes and all", "write one PARAMETER stop line for each text"
    elif name == "stop" and _ESCAPE.search(value):
        yield "a backslash stays a backslash here", 'for a line end, begin with """ and write the text over two lines'


def _about_text(name: str, text: str) -> Iterator[tuple[str, str | None]]:
    if "\r\n" in text:
        yield (
            f"the text of {name} has Windows line ends, and the model will see them",
            "`modelctl lint --fix` removes them",
        )
    if len(text) > 1 and text[0] == text[-1] == "'" and "\n" not in text:
        yield f"the single quotes belong to the text of {name}", 'use " to quote it, or no quotes'
