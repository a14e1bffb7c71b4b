"""modelctl info, modelctl help"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from typing import Annotated, Any

import typer

import modelctl
from modelctl import config
from modelctl.cli import background, term
from modelctl.cli.options import Json
from modelctl.errors import ModelctlError, UsageError

# In a process of its own: importing llama.cpp takes a while, and a broken build may end the process that does.
_PROBE = "from modelctl.runner import llama; llama.start_backend(); print(llama.can_offload())"


def info(as_json: Json = False) -> None:
    """Show versions, folders, the daemon, and whether llama.cpp can use a GPU here."""
    settings = config.load()
    version = _daemon_version(settings)
    facts: dict[str, Any] = {
        "version": modelctl.__version__,
        "python": sys.version.split()[0],
        "llama_cpp_python": _llama_version(),
        "gpu_offload": _can_offload(),
        "daemon": settings.address.url,
        "daemon_version": version,
        "daemon_pid": background.running_pid(settings),
        "models": str(settings.store_root),
        "config": str(settings.config_path),
        "log": str(settings.log_path),
    }
    if as_json:
        term.print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        term.say(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


def _daemon_version(settings: config.Config) -> str | None:
    """None: no daemon answers there, or what answers is none."""
    try:
        client = background.answering(settings)
        return client.version() if client else None
    except ModelctlError:
        return None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _llama_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return None


def _can_offload() -> bool | None:
    """None: llama.cpp could not be asked."""
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"True": True, "False": False}.get(probe.stdout.strip()) if probe.returncode == 0 else None


def show_help(
    context: typer.Context,
    topic: Annotated[
        list[str] | None, typer.Argument(metavar="TOPIC", help="a command, parameters or environment")
    ] = None,
) -> None:
    """Help on a command, on `parameters`, or on the `environment`."""
    if topic == ["parameters"]:
        _help_parameters()
    elif topic == ["environment"]:
        _help_environment()
    else:
        _help_command(context, topic or [])


def _help_parameters() -> None:
    from modelctl import parser

    rows = [tuple(row) for row in parser.table()]
    term.table(("PARAMETER", "TYPE", "DEFAULT", "RANGE", "WHAT IT DOES"), rows)


def _help_environment() -> None:
    term.say("MODELCTL_HOME holds everything below one folder. Every other one may also stand in config.yaml, there")
    term.say(f"without MODELCTL_ and in lower case: {config.load().config_path}\n")
    rows = [(f"MODELCTL_{key.upper()}", setting.help) for key, setting in config.SETTINGS.items()]
    term.table(("VARIABLE", "WHAT IT SETS"), rows)


def _help_command(context: typer.Context, path: list[str]) -> None:
    here: Any = context.parent
    for name in path:
        commands = getattr(here.command, "commands", {})
        if name not in commands:
            raise UsageError(f"no help on {' '.join(path)!r}", hint=_on_what(here, commands))
        _, command, _ = here.command.resolve_command(here, [name])
        here = command.make_context(name, [], parent=here, resilient_parsing=True)
    print(here.get_help())


def _on_what(context: Any, commands: Collection[str]) -> str:
    if context.parent:
        return f"see: {context.command_path} --help"
    return f"there is help on: {', '.join(commands)}, parameters, environment"
