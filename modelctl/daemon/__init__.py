"""The daemon: one process that serves HTTP, and a runner for every base in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from modelctl.config import Config


def serve(config: Config, held: AbstractContextManager[None] = nullcontext()) -> int:  # noqa: B008 - has no state
    """Run in the foreground until SIGINT or SIGTERM. `held` is entered once the port is ours, and left at the end.

    Raises `ModelctlError` when it cannot start.
    """
    from modelctl.daemon import server  # uvicorn and starlette, which whoever asks for the rest does not need

    return server.serve(config, held)
