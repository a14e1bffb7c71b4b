"""What `--help` looks like: boxes as typer has rich draw them, drawn here, because importing rich for them takes longer
than all of `modelctl --help` may."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from modelctl.cli import term

MAX_WIDTH = 100  # longer lines are hard to read
TITLES = {"argument": "Arguments", "option": "Options"}
ROUND, ASCII = ("╭", "─", "╮", "│", "╰", "╯"), ("+", "-", "+", "|", "+", "+")

Rows = list[tuple[str, str]]  # what is typed, and what it does
Panels = Mapping[str, Rows]  # by title


class BoxedCommand(TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))


class BoxedGroup(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A group by itself does nothing: its help is what is left to say."""
        if not args and not ctx.resilient_parsing:
            print(self.get_help(ctx))
            raise typer.Exit(2)
        return super().parse_args(ctx, args)


def page(command: TyperCommand | TyperGroup, context: Any) -> str:
    width = max(40, min(shutil.get_terminal_size().columns, MAX_WIDTH))
    lines = [""]
    for text in (command.get_usage(context), *_paragraphs(command.help)):
        lines += [*(" " + line for line in textwrap.wrap(text, width - 2)), ""]
    for panels in (_parameters(command, context), _commands(command)):
        lines += _boxes(panels, width)
    return "\n".join(lines) + "\n"


def _paragraphs(help: str | None) -> list[str]:
    return inspect.cleandoc(help or "").split("\n\n")


def _parameters(command: TyperCommand | TyperGroup, context: Any) -> Panels:
    panels = defaultdict(list)
    for one in command.get_params(context):
        record = one.get_help_record(context)
        if record:
            panels[getattr(one, "rich_help_panel", None) or TITLES[one.param_type_name]].append(record)
    return panels


def _commands(command: TyperCommand | TyperGroup) -> Panels:
    panels = defaultdict(list)
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            panels[one.rich_help_panel or "Commands"].append((name, _paragraphs(one.help)[0]))
    return panels


def _boxes(panels: Panels, width: int) -> Iterator[str]:
    names = [name for rows in panels.values() for name, _ in rows]
    column = min(max(map(len, names), default=0), width // 3)
    for title, rows in panels.items():
        yield from _box(title, rows, width, column)


def _box(title: str, rows: Rows, width: int, column: int) -> Iterator[str]:
    left, dash, right, side, low_left, low_right = ROUND if _can_show(ROUND) else ASCII
    yield f"{term.dim(left + dash)} {title} {term.dim(dash * (width - len(title) - 5) + right)}"
    side, rest = term.dim(side), width - column - 6
    for name, help in rows:
        cells = textwrap.wrap(name, column, break_on_hyphens=False), textwrap.wrap(help, rest, break_on_hyphens=False)
        for first, second in zip_longest(*cells, fillvalue=""):
            yield f"{side} {term.bold(first.ljust(column))}  {second.ljust(rest)} {side}"
    yield term.dim(low_left + dash * (width - 2) + low_right)


def _can_show(signs: Iterable[str]) -> bool:
    try:
        "".join(signs).encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
