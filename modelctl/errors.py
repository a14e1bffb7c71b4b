"""Every error a user can meet, with the HTTP status and the exit code it turns into.

    ModelctlError                 500  exit 1
      BadRequest                  400  exit 1   the request or file is wrong; nothing was changed
        UsageError                400  exit 2   the command line is wrong
      Forbidden                   403  exit 1   a foreign Host or Origin
      NotFound                    404  exit 1   no model, adapter or blob of that name
      Conflict                    409  exit 1   the name or the resource is in use
      TooLarge                    413  exit 1
      Busy                        503  exit 1   the queue is full; try again
      RunnerDied                  500  exit 1   the child process that owns the base is gone
      LoadFailed                  500  exit 1   llama.cpp refused the base or an adapter
      DaemonUnreachable           503  exit 1   raised by the client only

`modelctl.cli` turns them into one line on stderr, `modelctl.daemon` into JSON; nobody else words errors.
"""

from __future__ import annotations


class ModelctlError(Exception):
    """An error with a message for the user and, where one is likely, a `hint`: the next thing to type or change."""

    status = 500
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadRequest(ModelctlError):
    status = 400


class UsageError(BadRequest):
    exit_code = 2


class Forbidden(ModelctlError):
    status = 403


class NotFound(ModelctlError):
    status = 404


class Conflict(ModelctlError):
    status = 409


class TooLarge(ModelctlError):
    status = 413


class Busy(ModelctlError):
    status = 503


class RunnerDied(ModelctlError):
    pass


class LoadFailed(ModelctlError):
    pass


class DaemonUnreachable(ModelctlError):
    status = 503
