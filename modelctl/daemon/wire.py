"""Our end of a runner's socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import msgspec

from modelctl.runner.frames import FromRunner, from_runner, unpack_length

log = logging.getLogger("modelctl.daemon")

HEAD = 4  # bytes of a length


class Wire(asyncio.Protocol):
    """Hands each frame on as soon as it is whole, within the event loop's call: a stream reader and a task in between
    cost more than all the tokens of a step. `closed` is done once nothing more can come."""

    def __init__(self, deliver: Callable[[FromRunner], None], name: str) -> None:
        """`name`: of the other side, for the log."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deliver = deliver
        self._name = name
        self._rest = bytearray()  # of a frame that is not whole yet
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except (msgspec.DecodeError, ValueError) as error:
            log.error("%s sent a frame that cannot be read: %s", self._name, error)
            self.hang_up()

    def _take(self, data: bytes | bytearray) -> None:
        if self._rest:
            self._rest += data
            data = self._rest
        start = 0
        while len(data) >= (body := start + HEAD) and len(data) >= (end := body + unpack_length(data[start:body])):
            self._deliver(from_runner.decode(data[body:end]))
            start = end
        if data is self._rest:
            del self._rest[:start]
        else:
            self._rest += data[start:]

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hang_up(self) -> None:
        """After what was sent."""
        if self._transport is not None:
            self._transport.close()
