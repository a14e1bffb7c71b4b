"""Every command: its panel in the help, where it is, and its line of help.

The line stands here as well as in the command's docstring (a test compares them), so that `modelctl --help` and Tab
need none of the modules: importing them all takes longer than the help may.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer

from modelctl.cli.help import BoxedCommand, BoxedGroup


class Entry(NamedTuple):
    panel: str
    target: str  # module:name below modelctl.cli, of a function or, for a command with commands of its own, a Typer
    help: str
    hidden: bool = False


COMMANDS: Mapping[str, Entry] = {
    "create": Entry(
        "Main commands", "create:create", "Make a model from a Modelfile: a base, its adapters, and how to prompt it."
    ),
    "run": Entry(
        "Main commands",
        "run:run",
        "Ask a model. Without a prompt, chat with it. Piped text is put before the prompt.",
    ),
    "lora": Entry("Main commands", "lora:topic", "List and rescale a model's adapters, live."),
    "list": Entry("Models", "models:list_models", "List the models in the store, newest first."),
    "ls": Entry("Models", "models:list_models", "List the models in the store, newest first.", hidden=True),
    "cp": Entry("Models", "models:cp", "Give a model a second name. Nothing is stored twice."),
    "rm": Entry("Models", "models:rm", "Remove models. `modelctl gc` then frees the space that no other model needs."),
    "show": Entry("Models", "show:show", "Show what a model is made of."),
    "lint": Entry(
        "Models",
        "lint:lint",
        "Check a Modelfile without creating a model. Whether the files that it names exist is for `create` to say.",
    ),
    "du": Entry(
        "Store", "storage:du", "Show the bytes of each model: its own, those it shares, and what gc would free."
    ),
    "gc": Entry("Store", "storage:gc", "Free the space that no model needs."),
    "verify": Entry(
        "Store",
        "storage:verify",
        "Read every byte in the store and say what is wrong. Nothing is ever deleted.",
    ),
    "pin": Entry("Store", "storage:pin", "Keep a model as it is now, as name@sha256:…, whatever becomes of the name."),
    "export": Entry("Store", "storage:export", "Write a model to one file: an OCI image layout in a tar."),
    "import": Entry(
        "Store",
        "storage:import_models",
        "Read a model from a file that `export` wrote (- reads stdin), or models from Ollama's store.",
    ),
    "serve": Entry(
        "The daemon",
        "serve:serve",
        "Run the daemon in the foreground. `run`, `lora` and `ps` start one by themselves.",
    ),
    "stop": Entry("The daemon", "serve:stop", "Unload models; without a name, stop the daemon."),
    "ps": Entry("The daemon", "serve:ps", "List the models in memory."),
    "logs": Entry("The daemon", "serve:logs", "Print the log of the daemon that was started in the background."),
    "info": Entry(
        "About", "info:info", "Show versions, folders, the daemon, and whether llama.cpp can use a GPU here."
    ),
    "help": Entry("About", "info:show_help", "Help on a command, on `parameters`, or on the `environment`."),
}


def load(name: str) -> Any:
    """The command itself, out of its module."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    found = getattr(import_module(f"modelctl.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    app = typer.Typer(add_completion=False)
    app.command(name, cls=BoxedCommand)(found)
    return typer.main.get_command(app)


class Commands(BoxedGroup):
    """All commands by name and line of help; a command is loaded when a command line turns out to be about it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (panel, _, help, hidden) in COMMANDS.items():
            self.add_command(BoxedCommand(name, help=help, rich_help_panel=panel, hidden=hidden))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest
