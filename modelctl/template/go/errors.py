"""Errors that point into a template's text."""

from __future__ import annotations

from modelctl.errors import BadRequest


class GoTemplateError(BadRequest):
    """A template that does not parse or fails to run. `line` and `column` count from 1, columns in characters."""

    def __init__(self, reason: str, source: str, pos: int, *, hint: str | None = None) -> None:
        self.reason = reason
        self.line = source.count("\n", 0, pos) + 1
        self.column = pos - source.rfind("\n", 0, pos)
        super().__init__(f"the template is wrong at line {self.line}, column {self.column}: {reason}", hint=hint)


class FunctionError(Exception):
    """A template function refuses its arguments; whoever called it knows where, and turns it into the above."""
