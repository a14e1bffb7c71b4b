"""What waits inside the daemon for a runner's frames: a stream of deltas, or one reply."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from modelctl.errors import BadRequest, Busy, ModelctlError, NotFound, TooLarge
from modelctl.runner.frames import Attached, Delta, Embedded, Failed, Generate, Rendered, StatsReply

MAX_WAITING = 1024  # deltas; the socket to a client that does not read has taken megabytes by then

Direct = Callable[[Delta], bool]  # takes a delta to its client at once; False: not now
Answer = Attached | Rendered | Embedded | StatsReply

_BY_STATUS = {400: BadRequest, 404: NotFound, 413: TooLarge, 503: Busy}


def failure(frame: Failed) -> ModelctlError:
    """The error a runner reports, as one of ours with the same status."""
    error = _BY_STATUS.get(frame.status, ModelctlError)(frame.message, hint=frame.hint or None)
    error.status = frame.status
    return error


class Pending(Protocol):
    """Whoever waits under one id. `fail` is called at most once, and nothing after it."""

    model: str

    def fail(self, error: ModelctlError) -> None: ...


class Reply:
    """One frame to come."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def put(self, frame: Answer) -> None:
        if not self.future.done():
            self.future.set_result(frame)

    def fail(self, error: ModelctlError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Source(Protocol):
    """Who runs the generations of a stream."""

    def cancel(self, stream: Stream) -> None: ...

    def remix(self, stream: Stream, mix: list[tuple[str, float]]) -> None: ...


class Stream:
    """The deltas of generations that belong together; a delta's `id` is its generation's place among them, from 0.

    Each generation's last delta has `done` set. Raises the error that ended one of them instead, if one did. `close`
    cancels those that still run. A reader so slow that `MAX_WAITING` deltas wait is cut off: a runner never waits for
    a client. One reader at a time.
    """

    def __init__(self, model: str, generations: Sequence[Generate], source: Source) -> None:
        self.model = model
        self.direct: Direct | None = None  # spares each delta the way through the reader's task, while that waits
        self.ids: list[int] = []  # of those that were started
        self.later = list(generations)  # the others
        self._source = source
        self._n_running = len(generations)
        self._waiting: deque[Delta] = deque()
        self._error: ModelctlError | None = None
        self._ended = False
        self._reader: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        if self._ended:
            return
        delta.id = self.ids.index(delta.id)
        if delta.done is None and self._went_directly(delta):
            return
        if len(self._waiting) >= MAX_WAITING:
            self.close()
            self.fail(ModelctlError("the answer was cut off: the client reads too slowly"))
            return
        self._waiting.append(delta)
        self._n_running -= delta.done is not None
        self._ended = not self._n_running
        self._wake()

    def fail(self, error: ModelctlError) -> None:
        self._error, self._ended = error, True
        self._wake()

    @property
    def _parked(self) -> asyncio.Future[None] | None:
        """What the reader waits on, while it waits."""
        return None if self._reader is None or self._reader.done() else self._reader

    def _went_directly(self, delta: Delta) -> bool:
        """Only while the reader waits for more, so that nothing is overtaken."""
        try:
            return self.direct is not None and self._parked is not None and self.direct(delta)
        except Exception:  # the reader's task will meet it too, and say so to the client
            return False

    def _wake(self) -> None:
        if (parked := self._parked) is not None:
            parked.set_result(None)

    def remix(self, mix: list[tuple[str, float]]) -> None:
        """Go on under another mix, from the next token."""
        self._source.remix(self, mix)

    def close(self) -> None:
        self._ended = True
        self._source.cancel(self)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._waiting.popleft()
