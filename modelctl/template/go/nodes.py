"""The syntax tree. `pos` is the offset in the source, for errors; a variable's `slot` is its place in the frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number or boolean; nil when `value` is None."""

    pos: int
    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    pos: int


@dataclass(frozen=True, slots=True)
class Field:
    """.A.B"""

    pos: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """$x.A.B; slot 0 is $ itself."""

    pos: int
    name: str
    slot: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    pos: int
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """(pipeline).A.B"""

    pos: int
    node: Operand
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    pos: int
    args: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each given the value of the one before, and the variables that take the last value."""

    pos: int
    commands: tuple[Command, ...]
    variables: tuple[Variable, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    pos: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    pos: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """if, with or range."""

    pos: int
    keyword: str
    pipe: Pipe
    body: tuple[Node, ...]
    orelse: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """{{template "name" pipeline}}, and what {{block}} leaves behind."""

    pos: int
    name: str
    pipe: Pipe | None


@dataclass(frozen=True, slots=True)
class Jump:
    """break or continue."""

    pos: int
    keyword: str


Operand: TypeAlias = Literal | Dot | Field | Variable | Function | Chain | Pipe
Node: TypeAlias = Text | Action | Branch | Call | Jump


@dataclass(frozen=True, slots=True)
class Tree:
    """One template: the main one, named "", or a defined one."""

    name: str
    body: tuple[Node, ...]
    n_slots: int


def names(body: tuple[Node, ...]) -> Iterator[str]:
    """Every field name used, however deep: Messages, Role, Content, ..."""
    for node in body:
        if isinstance(node, Action | Branch | Call) and node.pipe:
            yield from _pipe_names(node.pipe)
        if isinstance(node, Branch):
            yield from names(node.body)
            yield from names(node.orelse)


def _pipe_names(pipe: Pipe) -> Iterator[str]:
    for command in pipe.commands:
        for arg in command.args:
            yield from _operand_names(arg)


def _operand_names(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Field | Variable | Chain):
        yield from operand.names
    if isinstance(operand, Chain):
        yield from _operand_names(operand.node)
    if isinstance(operand, Pipe):
        yield from _pipe_names(operand)
