"""modelctl create"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import config
from modelctl.cli import term
from modelctl.cli.adapters import rule, short
from modelctl.cli.options import open_store
from modelctl.errors import BadRequest, UsageError

if TYPE_CHECKING:
    from modelctl.model import Model
    from modelctl.parser import Modelfile
    from modelctl.store import ModelName

MAX_MODELFILE = 64 << 20  # bytes; a TEMPLATE or LICENSE of that size would be a mistake too


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Main commands")(create)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what to call it; default: the folder's name")] = "",
    file: Annotated[str, typer.Option("--file", "-f", help="the Modelfile; - reads it from stdin")] = "Modelfile",
) -> None:
    """Make a model from a Modelfile: a base, its adapters, and how to prompt it."""
    from modelctl.cli.progress import report_to
    from modelctl.create import create as create_model
    from modelctl.model import Model

    settings = config.load()
    modelfile, folder = _read(file)
    target = _name(name, folder)
    store = open_store(settings)
    with report_to(sys.stdout) as report:
        if not name:
            report.status(f"model name: {target.short} (the folder's; another one: modelctl create NAME)")
        ref = create_model(store, target.short, modelfile, folder, report)
        report.status("success")
    settings.remember_model(ref.name.short)
    _say_next(Model.of(store, ref))


def _read(file: str) -> tuple[Modelfile, Path]:
    """The Modelfile and the folder that its relative paths start in."""
    from modelctl import parser

    if file == "-":
        return parser.parse(parser.decode(sys.stdin.buffer.read(), "stdin"), "stdin"), _here()
    data = _bytes(Path(file).expanduser())
    return parser.parse(parser.decode(data, file), file), _here() / Path(file).expanduser().parent


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise BadRequest("the current folder does not exist any more", hint="cd to another one") from None


def _bytes(path: Path) -> bytes:
    """Opened without waiting: a FIFO or a device must not hang us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_modelfile(path, error) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise _not_a_file(path, mode)
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_MODELFILE + 1)
    if len(data) > MAX_MODELFILE:
        raise BadRequest(f"{path} is larger than {term.size(MAX_MODELFILE)}: not a Modelfile")
    return data


def _not_a_file(path: Path, mode: int) -> UsageError:
    if stat.S_ISDIR(mode):
        return UsageError(f"{path} is a folder", hint=f"name the file: modelctl create -f {path / 'Modelfile'}")
    return UsageError(f"{path} is not a regular file", hint="to read a Modelfile from a pipe: modelctl create -f -")


def _no_modelfile(path: Path, error: OSError) -> BadRequest:
    if not isinstance(error, FileNotFoundError):
        return BadRequest(f"cannot read {path}: {error.strerror}")
    if str(path) == "Modelfile":
        return UsageError("no Modelfile in this folder", hint="name one: modelctl create -f PATH")
    return UsageError(f"no such file: {path}", hint="-f takes the path of a Modelfile")


def _name(given: str, folder: Path) -> ModelName:
    from modelctl.store import ModelName, StoreError

    if given.lower().endswith((".gguf", "modelfile")) and Path(given).is_file():
        hint = "modelctl create NAME -f Modelfile, with a line `FROM ./base.gguf` in it"
        raise UsageError(f"{given} is a file; create takes a name for the new model first", hint=hint)
    try:
        return ModelName.parse(given or valid_name(folder.resolve().name))
    except StoreError as error:
        if given:
            raise UsageError(error.message, hint=error.hint) from None
        raise UsageError("the folder's name makes no model name", hint="give one: modelctl create NAME") from None


def valid_name(folder: str) -> str:
    """A model name from a folder's: `My Tutor (v2)` -> `my-tutor-v2`."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", folder.lower())
    return re.sub(r"\.{2,}", ".", name).strip("-.")[:80].rstrip("-.")


def _say_next(model: Model) -> None:
    term.say()
    if model.adapters:
        term.say(rule(model.name, model.default_scales()))
    term.say(f'ask it: modelctl run {short(model.name)} "..."')
