"""modelctl create"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import config
from modelctl.cli import modelfiles, term
from modelctl.cli.adapters import rule, short
from modelctl.cli.options import open_store
from modelctl.errors import BadRequest, UsageError

if TYPE_CHECKING:
    from modelctl.model import Model
    from modelctl.parser import Modelfile
    from modelctl.store import ModelName


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

    data = modelfiles.read(file)
    name = "stdin" if file == modelfiles.STDIN else file
    folder = Path() if file == modelfiles.STDIN else Path(file).parent
    return parser.parse(parser.decode(data, name), name), _here() / folder


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise BadRequest("the current folder does not exist any more", hint="cd to another one") from None


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
