"""uvicorn's HTTP protocol with a short cut for tokens, and with the limits it lacks: on the size of a request's head,
and on the time that it, and the reading of an answer, may take."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from modelctl.daemon.access_log import AccessLog

log = logging.getLogger("modelctl.daemon")
ACCESS_LOG = AccessLog("modelctl.access")

_PIPE = "modelctl.pipe"  # among the extensions of an ASGI scope
MAX_HEAD = 64 << 10  # bytes
MAX_HEADERS = 100
HEAD_TIMEOUT = 10.0  # seconds from the first byte of a connection; between requests the keep-alive time rules
READ_TIMEOUT = 60.0  # seconds in which a client must read what waits; one that does not must not hold a model in memory


class BadHead(Exception):
    """Seen by the parser, which answers 400 and closes."""


class Together:
    """A transport that sends in one packet what is written in one turn of the event loop: uvicorn writes a reply's head
    and its body one by one, and two packets wake the client twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(piece)

    def write_now(self, piece: bytes) -> None:
        if self._pieces:
            self.flush()
        self._transport.write(piece)

    def flush(self) -> None:
        if self._pieces and not self._transport.is_closing():  # the client may have gone in the meantime
            self._transport.write(b"".join(self._pieces))
        self._pieces.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Pipe:
    """What ASGI does not tell of a request, and the body of its streamed response, for pieces that are written at once.
    To pass a token on through the reader's task and ASGI's coroutines costs more than all else the daemon does with
    it."""

    def __init__(self, cycle: RequestResponseCycle, transport: Together) -> None:
        self._cycle = cycle
        self._transport = transport

    @staticmethod
    def of(scope: Scope) -> Pipe | None:
        """A request's; None under another server."""
        pipe: Pipe | None = scope.get("extensions", {}).get(_PIPE)
        return pipe

    @property
    def has_all(self) -> bool:
        """The request's body has come to its end, though it may not have been read yet."""
        return not self._cycle.more_body

    @property
    def is_open(self) -> bool:
        """Its headers were sent, its client reads, and its end is yet to come."""
        cycle = self._cycle
        ended = cycle.disconnected or cycle.response_complete or cycle.flow.write_paused
        return cycle.chunked_encoding is True and cycle.response_started and not ended

    def write(self, piece: bytes) -> None:
        if piece:  # nothing would be a chunk that ends the body
            self._transport.write_now(b"%x\r\n%b\r\n" % (len(piece), piece))


class LimitedProtocol(HttpToolsProtocol):
    _head_bytes = 0  # of the request line and headers so far; -1 once they are complete
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None  # runs while the client is behind

    def connection_made(self, transport: Any) -> None:
        self.access_logger = ACCESS_LOG
        self._together = Together(transport, self.loop)
        super().connection_made(self._together)  # type: ignore[arg-type]  # it has all that is called
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_complete()
        self._stop_read_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_TIMEOUT, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_read_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes >= 0 and self.parser is not None and not self.transport.is_closing():
            if self._head_timer is None:
                self._expect_head()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = max(self._head_bytes, 0)

    def on_headers_complete(self) -> None:
        self._head_complete()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            raise BadHead
        if not self.url.startswith(b"/") and self.url != b"*":  # a proxy's form, whose host nobody would check
            raise BadHead
        super().on_headers_complete()
        extensions: dict[str, Any] = {_PIPE: Pipe(self.cycle, self._together)}
        self.scope["extensions"] = extensions

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _head_complete(self) -> None:
        self._head_bytes = -1
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _cut_off(self) -> None:
        log.warning("a client stopped reading; its answer was cut off")
        self.transport.abort()
