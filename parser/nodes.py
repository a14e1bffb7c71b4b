"""What a Modelfile says: one frozen node an instruction, in the order of the file.

Nodes are equal when they say the same; where they stand (`span`) does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .names import adapter_name
from .parameters import PARAMETERS, Scalar
from .source import ModelfileError, Problem, Source


class Span(NamedTuple):
    """Offsets into the text: the instruction is [first, last), its value (with its quotes) [start, end)."""

    first: int
    start: int
    end: int
    last: int


@dataclass(frozen=True, slots=True)
class Node:
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class From(Node):
    value: str  # a model's name or a path; only the disk can tell which


@dataclass(frozen=True, slots=True)
class Adapter(Node):
    path: str
    name: str | None = None
    scale: float | None = None

    @property
    def effective_name(self) -> str:
        return self.name or adapter_name(self.path)


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    name: str
    value: Scalar  # of the type that PARAMETERS says; a deprecated one keeps its text


@dataclass(frozen=True, slots=True)
class Template(Node):
    text: str


@dataclass(frozen=True, slots=True)
class System(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Message(Node):
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class License(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Requires(Node):
    version: str


@dataclass(frozen=True, slots=True)
class Renderer(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Parser(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Draft(Node):
    path: str


@dataclass(frozen=True, slots=True)
class Capability(Node):
    name: str


Instruction = (
    From
    | Adapter
    | Parameter
    | Template
    | System
    | Message
    | License
    | Requires
    | Renderer
    | Parser
    | Draft
    | Capability
)
N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A parsed Modelfile. The properties apply the language's rules for repeats: the last one wins, except that
    FROM, ADAPTER, MESSAGE, LICENSE, DRAFT, CAPABILITY and `PARAMETER stop` add up."""

    instructions: tuple[Instruction, ...]
    filename: str = field(default="Modelfile", compare=False)
    source: str = field(default="", compare=False, repr=False)

    def all(self, kind: type[N]) -> tuple[N, ...]:
        """The instructions of one kind, in order."""
        return tuple(node for node in self.instructions if isinstance(node, kind))

    @property
    def sources(self) -> tuple[From, ...]:
        return self.all(From)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        return self.all(Adapter)

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.all(Message)

    @property
    def drafts(self) -> tuple[Draft, ...]:
        return self.all(Draft)

    @property
    def licenses(self) -> tuple[str, ...]:
        return tuple(node.text for node in self.all(License))

    @property
    def capabilities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.name for node in self.all(Capability)))

    @property
    def template(self) -> str | None:
        return next((node.text for node in reversed(self.all(Template))), None)

    @property
    def system(self) -> str | None:
        return next((node.text for node in reversed(self.all(System))), None)

    @property
    def requires(self) -> str | None:
        return next((node.version for node in reversed(self.all(Requires))), None)

    @property
    def renderer(self) -> str | None:
        return next((node.name for node in reversed(self.all(Renderer))), None)

    @property
    def parser(self) -> str | None:
        return next((node.name for node in reversed(self.all(Parser))), None)

    @property
    def parameters(self) -> dict[str, Scalar | list[str]]:
        """Deprecated parameters have no effect, so they are left out; `warnings` names them."""
        given = [node for node in self.all(Parameter) if not PARAMETERS[node.name].deprecated]
        values: dict[str, Scalar | list[str]] = {node.name: node.value for node in given}
        if "stop" in values:
            values["stop"] = [str(node.value) for node in given if node.name == "stop"]
        return values

    def error(self, node: Node, message: str, hint: str | None = None) -> ModelfileError:
        """An error to raise, located at `node`'s value: for what only the disk can tell, such as a missing file."""
        return ModelfileError([self.problem(node, message, hint)])

    def problem(self, node: Node, message: str, hint: str | None = None) -> Problem:
        """The same as a value, for a warning. A node that was not parsed is nowhere in the file."""
        if node.span is None:
            return Problem(message, hint, self.filename)
        return Source(self.source, self.filename).problem(node.span.start, node.span.end, message, hint)
