"""The daemon: one process that serves HTTP, and a runner for every base in memory."""

from __future__ import annotations

from modelctl.config import Config


def serve(config: Config) -> int:
    """Run in the foreground until SIGINT or SIGTERM. Raises `ModelctlError` when it cannot start."""
    from modelctl.daemon import server  # uvicorn and starlette, which whoever asks for the rest does not need

    return server.serve(config)
