"""What can go wrong in a store. Each says what, where, and in `hint` what to do next.

StoreError
  InvalidName        not a model name
  InvalidDigest      not a digest
  NotFound           no such name, pin or blob
  Exists             the name is taken by another model
  Corrupt            something in the store is not what its name or manifest says
    Mismatch         bytes on their way in do not hash to the digest they were promised under
  BadSource          the file to be stored cannot be read, or is not a regular file
  BadArchive         the archive to be imported is not one we can read
  NoSpace            the disk, a quota or a file size limit is exhausted; nothing was changed
  ReadOnly           the store cannot be written
    Denied           because it is another user's
  Locked             another process holds the store for longer than we wait
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class StoreError(Exception):
    """An error with a message for the user and, where one is likely, the next thing to type or change."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidName(StoreError):
    pass


class InvalidDigest(StoreError):
    pass


class NotFound(StoreError):
    pass


class Exists(StoreError):
    pass


class Corrupt(StoreError):
    pass


class Mismatch(Corrupt):
    pass


class BadSource(StoreError):
    pass


class BadArchive(StoreError):
    pass


class NoSpace(StoreError):
    pass


class ReadOnly(StoreError):
    pass


class Denied(ReadOnly):
    pass


class Locked(StoreError):
    pass


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def os_errors(doing: str, where: Path | str) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StoreError`: "cannot <doing> <where>: <why>"."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing, Path(where)) from error


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Closes `fd` after the block, and takes no error for an answer: what had to reach the disk was synced before, and
    nothing may fail a call that has taken effect."""
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def translate(error: OSError, doing: str, where: Path) -> StoreError:
    """The `StoreError` for an `OSError` met while changing the store."""
    message = f"cannot {doing} {where}: {error.strerror or error}"
    if error.errno in FULL:
        return NoSpace(message, hint="free some space (`modelctl gc` frees what no model needs), then try again")
    if error.errno == errno.EROFS:
        return ReadOnly(message, hint="models can be listed and run from here, not created or removed")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(message + _owned_by(where), hint="run as that user, or point MODELCTL_HOME to a folder of yours")
    if error.errno == errno.EXDEV:
        return StoreError(message, hint="all folders of a store must lie on one file system: move it as a whole")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidName(message, hint="use a shorter model name")
    return StoreError(message, hint="check the disk, then try again")


def _owned_by(where: Path) -> str:
    for place in (where, *where.parents):
        try:
            uid = place.stat().st_uid
        except OSError:
            continue
        return f" ({place} belongs to user {_user(uid)}, you are {_user(os.geteuid())})"
    return ""


def _user(uid: int) -> str:
    import pwd  # only POSIX has it, and only this message needs it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
