"""The Modelfile language: text -> frozen nodes -> text. Reads no files and knows nothing of the rest."""

from .advice import warnings
from .dump import dump, tidy
from .encoding import decode
from .names import adapter_name
from .nodes import (
    Adapter,
    Capability,
    Draft,
    From,
    Instruction,
    License,
    Message,
    Modelfile,
    Node,
    Parameter,
    Parser,
    Renderer,
    Requires,
    Span,
    System,
    Template,
)
from .parameters import PARAMETERS, ParameterError, ParameterSpec, Row, check_value, deprecated, table
from .parse import parse
from .source import ModelfileError, Problem

__all__ = [
    "PARAMETERS",
    "Adapter",
    "Capability",
    "Draft",
    "From",
    "Instruction",
    "License",
    "Message",
    "Modelfile",
    "ModelfileError",
    "Node",
    "Parameter",
    "ParameterError",
    "ParameterSpec",
    "Parser",
    "Problem",
    "Renderer",
    "Requires",
    "Row",
    "Span",
    "System",
    "Template",
    "adapter_name",
    "check_value",
    "decode",
    "deprecated",
    "dump",
    "parse",
    "table",
    "tidy",
    "warnings",
]
