"""lint: what `create` would say about a Modelfile, without creating anything."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli import term
from modelctl.cli.modelfiles import STDIN, read

File = Annotated[str, typer.Option("-f", "--file", metavar="PATH", help="the Modelfile; - reads stdin")]
Fix = Annotated[bool, typer.Option("--fix", help="rewrite it in canonical form; comments are kept")]


def lint(file: File = "Modelfile", fix: Fix = False) -> None:
    """Check a Modelfile without creating a model. Whether the files that it names exist is for `create` to say.

    Warnings leave the exit code at 0. With --fix, a file that has problems stays as it is.
    """
    from modelctl.parser import decode, parse, warnings

    data = read(file)
    name = "stdin" if file == STDIN else file
    text = decode(data, name)
    found = warnings(parse(text, name))  # raises with every problem
    for problem in found:
        term.note(f"warning: {problem}")
    if fix:
        _fix(file, data, text)
    else:
        counted = {0: "no problems", 1: "no problems, 1 warning"}
        term.note(f"{name}: {counted.get(len(found), f'no problems, {len(found)} warnings')}")


def _fix(file: str, data: bytes, text: str) -> None:
    """CRLF goes from texts too: nobody wants a model to see what an editor for Windows put there."""
    from modelctl.parser import parse, tidy

    fixed = tidy(parse(text.replace("\r\n", "\n"), file)).encode()
    if file == STDIN:
        sys.stdout.buffer.write(fixed)
    elif fixed != data:
        _replace(Path(file), fixed)
        term.note(f"{file}: rewritten")
    else:
        term.note(f"{file}: in canonical form already")


def _replace(path: Path, data: bytes) -> None:
    """Old or new, never half. A link stays a link, and the mode stays."""
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            new.chmod(stat.S_IMODE(target.stat().st_mode))
            new.replace(target)
        except BaseException:
            new.unlink()
            raise
