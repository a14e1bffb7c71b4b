"""An option for every PARAMETER, out of the parser's one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from modelctl.errors import UsageError
from modelctl.parser import PARAMETERS, ParameterError, ParameterSpec, check_value


def with_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces `**given` in the command's signature by one option a parameter, None when it was not given.

    All are read as text: `check_value` knows the types and ranges, and words the errors, as it does for a Modelfile.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [_option(spec) for spec in PARAMETERS.values() if not spec.deprecated]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]  # inspect reads it
    return command


def _option(spec: ParameterSpec) -> inspect.Parameter:
    many = spec.type is str  # `stop`, the one that repeats
    option = typer.Option(
        "--" + spec.name.replace("_", "-"), help=spec.help, metavar=_metavar(spec), rich_help_panel="Parameters"
    )
    kind: Any = Annotated[list[str] | None if many else str | None, option]
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _metavar(spec: ParameterSpec) -> str:
    return {int: "N", float: "X", bool: "BOOL"}.get(spec.type, "TEXT")


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, typed. Raises `UsageError`."""
    return {name: check(name, value) for name, value in given.items() if value is not None and value != []}


def check(name: str, value: object) -> Any:
    try:
        return check_value(name, value)
    except ParameterError as error:
        raise UsageError(error.message, hint=error.hint) from None
