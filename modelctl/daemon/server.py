"""`serve`: the daemon in the foreground, from binding its port to the end of its last runner."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial

import uvicorn

from modelctl import __version__
from modelctl.config import Config
from modelctl.daemon.app import build
from modelctl.daemon.child import Spare
from modelctl.daemon.protocol import LimitedProtocol
from modelctl.daemon.runner_process import RunnerProcess
from modelctl.daemon.runners import Runners
from modelctl.daemon.service import Service
from modelctl.errors import ModelctlError, UsageError
from modelctl.store import Store

log = logging.getLogger("modelctl.daemon")

DRAIN = 10.0  # seconds for answers in flight, once we are told to stop
STRAGGLE = 2.0  # seconds more for their last lines to reach slow clients


def serve(config: Config, held: contextlib.AbstractContextManager[None]) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; 0 after an orderly end. Raises `ModelctlError` when it cannot start.

    `held` is entered once the port is ours.
    """
    _configure_logging()
    listener = bind(config)
    with held, listener, asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(config, listener))
    return 0


def bind(config: Config) -> socket.socket:
    """A listening socket on the configured address, which must be this machine's alone."""
    address = config.address
    if address.scheme != "http" or address.path:
        raise UsageError(f"cannot serve {address.url}", hint="give MODELCTL_HOST as host:port; a proxy can add TLS")
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"cannot listen on {address.host}: {error.strerror}") from None
    if not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback:
        raise UsageError(
            f"refusing to listen on {address.host}: whoever reaches that address could use and delete your models",
            hint="listen on 127.0.0.1, and let an SSH tunnel or a proxy that asks for a password face the network",
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # no wait after a crash
        listener.bind(where)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise _cannot_bind(f"{address.host}:{address.port}", error) from None
    return listener


def _cannot_bind(where: str, error: OSError) -> ModelctlError:
    if error.errno == errno.EADDRINUSE:
        return ModelctlError(
            f"{where} is already in use",
            hint="another daemon may run there: `modelctl ps`; or set MODELCTL_HOST to another port",
        )
    return ModelctlError(f"cannot listen on {where}: {error.strerror}", hint="set MODELCTL_HOST to another address")


async def _serve(config: Config, listener: socket.socket) -> None:
    spare = Spare(busy=lambda: runners.busy)
    runners = Runners(config, partial(RunnerProcess, child=spare.take))
    spare.refill_later()
    app = build(Service(config, Store(config.store_root), runners))
    settings = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff"), ("Vary", "Origin")],  # see guard.py
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=int(DRAIN + STRAGGLE),
    )
    host, port = listener.getsockname()[:2]
    log.info("modelctl %s listens on %s, port %d; models in %s", __version__, host, port, config.store_root)
    server = Server(settings, runners)
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(sig, server.told_to_stop)
    try:
        await server.serve(sockets=[listener])
    finally:
        spare.close()
        await runners.close()
        log.info("stopped")


class Server(uvicorn.Server):
    """Ends in order when told to stop, with `DRAIN` seconds for what is in flight; at once when told again."""

    def __init__(self, config: uvicorn.Config, runners: Runners) -> None:
        super().__init__(config)
        self._runners = runners
        self._told = asyncio.Event()

    def told_to_stop(self) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
        self._told.set()

    async def main_loop(self) -> None:
        """A look at the clock each second, for the Date in replies; uvicorn looks ten times whether it is to stop."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping; answers in flight have %g s", DRAIN)
        self._runners.refuse()
        cut_off = asyncio.get_running_loop().call_later(DRAIN, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()

    def _cut_off(self) -> None:
        """Every stream still open gets its last line."""
        self._closing = asyncio.ensure_future(self._runners.close())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn's would raise the signal again afterwards, but an orderly end has exit code 0."""
        yield


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _configure_logging() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk under the log is no reason to stop
