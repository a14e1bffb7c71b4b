"""The bytes of a Modelfile that the command line names."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from modelctl.cli import term
from modelctl.errors import BadRequest, ModelctlError, NotFound, UsageError

STDIN = "-"
MAX_BYTES = 64 << 20  # a TEMPLATE or LICENSE of that size would be a mistake too


def read(file: str) -> bytes:
    """`-` is stdin. Raises `NotFound`, `UsageError` for what is no file, `BadRequest` for what cannot be one."""
    return sys.stdin.buffer.read() if file == STDIN else _bytes(Path(file))


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
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadRequest(f"{path} is larger than {term.size(MAX_BYTES)}: not a Modelfile")
    return data


def _not_a_file(path: Path, mode: int) -> UsageError:
    if stat.S_ISDIR(mode):
        return UsageError(f"{path} is a folder", hint=f"name the file: -f {path / 'Modelfile'}")
    return UsageError(f"{path} is not a regular file", hint="to read a Modelfile from a pipe: -f -")


def _no_modelfile(path: Path, error: OSError) -> ModelctlError:
    if not isinstance(error, FileNotFoundError):
        return BadRequest(f"cannot read {path}: {error.strerror}")
    if str(path) == "Modelfile":
        return NotFound("no Modelfile in this folder", hint="name one: -f PATH")
    return NotFound(f"no such file: {path}", hint="-f takes the path of a Modelfile")
