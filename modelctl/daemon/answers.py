"""An answer on its way out: the same for every dialect, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelctl.daemon.bodies import while_connected
from modelctl.daemon.errors import ours
from modelctl.daemon.protocol import Pipe
from modelctl.daemon.streams import Direct
from modelctl.errors import ModelctlError
from modelctl.runner.frames import Delta


class Dialect(Protocol):
    """How one answer looks to its client. Made for each answer, as it may count."""

    media_type: str

    def piece(self, delta: Delta) -> bytes:
        """What the stream says for a delta, framing included, if anything. The last delta, with `done`, ends it."""

    def whole(self, deltas: list[Delta]) -> bytes:
        """The answer in one."""

    def error(self, error: ModelctlError) -> bytes:
        """The last piece of a stream that fails."""


class Later:
    """An ASGI response: a reply that takes a while to make. A client that leaves ends the making."""

    def __init__(self, make: Callable[[], Awaitable[Response]]) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            response = await self._make()
            await response(scope, receive, send)

        await while_connected(receive, work())


class Answer:
    """An ASGI response. Errors before the first delta raise, so that they become a status; later ones are a last piece.

    A client that leaves ends the generation.
    """

    def __init__(
        self, deltas: Callable[[Direct | None], AsyncIterator[Delta]], dialect: Dialect, *, stream: bool
    ) -> None:
        """`deltas` may hand some to the function it is given, in their order, as soon as the first was sent."""
        self._deltas = deltas
        self._dialect = dialect
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            direct = self._direct(scope) if self._stream else None
            async with aclosing(self._deltas(direct)) as deltas:  # type: ignore[type-var]  # an async generator
                if self._stream:
                    await self._send_stream(deltas, send)
                else:
                    body = self._dialect.whole([delta async for delta in deltas])
                    await Response(body, media_type="application/json")(scope, receive, send)

        await while_connected(receive, work())

    def _direct(self, scope: Scope) -> Direct | None:
        pipe = Pipe.of(scope)
        if pipe is None:
            return None

        def direct(delta: Delta) -> bool:
            if not pipe.is_open:
                return False
            pipe.write(self._dialect.piece(delta))
            return True

        return direct

    async def _send_stream(self, deltas: AsyncIterator[Delta], send: Send) -> None:
        started = False
        try:
            async for delta in deltas:
                if not started:
                    headers = [(b"content-type", self._dialect.media_type.encode()), (b"cache-control", b"no-cache")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                if body := self._dialect.piece(delta):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as error:
            if not started:
                raise
            await send({"type": "http.response.body", "body": self._dialect.error(ours(error)), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Mould:
    """A message that is sent again and again with only its strings changed: encoded once, filled in for each token."""

    GAP = "\0"  # stands where a string will be; no model's name holds it

    def __init__(self, message: bytes) -> None:
        """`message`: JSON and its framing, with gaps."""
        self._first, *self._rest = message.split(_encode(self.GAP))

    def cast(self, *texts: str) -> bytes:
        """With `texts` in the gaps, in the order of the message."""
        message = self._first
        for text, part in zip(texts, self._rest, strict=True):
            message += _encode(text) + part
        return message


_encode = msgspec.json.Encoder().encode


def joined(deltas: list[Delta]) -> Delta:
    """The deltas of one generation as one."""
    return Delta(
        id=deltas[-1].id,
        text="".join(delta.text for delta in deltas),
        n_tokens=sum(delta.n_tokens for delta in deltas),
        logprobs=[logprob for delta in deltas for logprob in delta.logprobs],
        done=deltas[-1].done,
    )


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC; now, unless seconds since the epoch are given. Every token of every answer carries one."""
    seconds = time.time() if seconds is None else seconds
    whole = int(seconds)
    return f"{_date_and_time(whole)}.{int((seconds - whole) * 1e6):06d}Z"


@lru_cache(maxsize=4)
def _date_and_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
