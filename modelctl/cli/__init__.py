"""The command line. One file a topic; `main` is the only place where an error becomes text and an exit code.

Only the topic that the command line names is imported (`commands`), and nothing heavy at its top: importing all of them
takes longer than `modelctl list` may.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import modelctl
from modelctl.cli import term
from modelctl.cli.commands import Commands

INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE
_CommandLineError = typer.BadParameter.__mro__[2]  # ClickException; typer brings its own click or takes the real one


def main(args: Sequence[str] | None = None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end an answer
    code = invoke(sys.argv[1:] if args is None else args)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    sys.exit(code)


def invoke(args: Sequence[str]) -> int:
    """Runs one command line; the exit code."""
    try:
        _run(args)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:  # `modelctl list | head`: nobody reads on, which is not an error
        _drop_stdout()
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        return _report(error)
    return 0


def build() -> typer.Typer:
    app = typer.Typer(
        name="modelctl",
        cls=Commands,
        help="One base model, many LoRA adapters, rescaled live.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"modelctl {modelctl.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", "-v", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _run(args: Sequence[str]) -> None:
    command = typer.main.get_command(build())
    if "_MODELCTL_COMPLETE" in os.environ:
        command.main(prog_name="modelctl")
    with command.make_context("modelctl", list(args)) as context:
        command.invoke(context)


def _drop_stdout() -> None:
    """Python flushes stdout once more when it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    if os.environ.get("MODELCTL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    message, hint, code = _explain(error)
    with contextlib.suppress(OSError):
        term.error(message, hint)
    return code


def _explain(error: Exception) -> tuple[str, str | None, int]:
    """(message, hint, exit code). 1: it failed; 2: the command line is wrong."""
    from modelctl.errors import ModelctlError
    from modelctl.parser import ModelfileError
    from modelctl.store import StoreError

    if isinstance(error, ModelctlError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, StoreError):
        return error.message, error.hint, 1
    if isinstance(error, ModelfileError):
        return str(error), None, 1
    if isinstance(error, _CommandLineError):
        return _command_line(error)
    if isinstance(error, OSError):
        return _os_error(error), None, 1
    return f"unexpected {type(error).__name__}: {error}", "this is a bug; MODELCTL_DEBUG=1 shows where it happened", 1


def _command_line(error: Exception) -> tuple[str, str, int]:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "modelctl"
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]  # whichever click it comes from
    return message[:1].lower() + message[1:], f"see: {command} --help", 2


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
