"""RunnerProcess: a runner child and all that is asked of it. It does not know which models it serves, or when to stop.

Its socket's frames are handed to whoever waits under their id. One task owns the process from the first frame to the
last: when the child ends, for whatever reason, it fails everyone who still waits, each exactly once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from modelctl.daemon.child import Child, describe_exit
from modelctl.daemon.streams import Answer, Reply, Stream, failure
from modelctl.daemon.wire import Wire
from modelctl.errors import LoadFailed, ModelctlError, RunnerDied
from modelctl.runner.frames import (
    AdapterFile,
    Attach,
    Attached,
    Cancel,
    Delta,
    Detokenize,
    Embed,
    Embedded,
    Failed,
    FromRunner,
    Generate,
    Load,
    Prompt,
    Ready,
    Remix,
    Render,
    Rendered,
    Stats,
    StatsReply,
    Step,
    Tokenize,
    ToRunner,
    pack,
)

log = logging.getLogger("modelctl.daemon")

T = TypeVar("T", bound=Answer)
Question = Attach | Render | Tokenize | Detokenize | Embed | Stats

GRACE = 2.0  # seconds from the end of the socket to SIGKILL


class RunnerProcess:
    """`model` names it in errors until requests bring their own. `on_exit(self)` is called once the child is gone."""

    def __init__(
        self,
        load: Load,
        model: str,
        *,
        timeout: float | None = None,
        child: Callable[[], Child] = Child,
        on_exit: Callable[[RunnerProcess], None] = lambda _: None,
    ) -> None:
        self.load = load
        self.model = model
        self.stopping = False
        self.last_words = ""  # how it ended, once it has
        self._timeout = timeout
        self._new_child = child
        self._on_exit = on_exit
        self._ids = itertools.count(1)  # 0 is the Load
        self._pending: dict[int, Stream | Reply] = {}
        self._loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._child: Child | None = None
        self._owner: asyncio.Task[None] | None = None
        self._wire: Wire | None = None

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    async def start(self) -> Ready:
        """Spawn and load. Raises `LoadFailed` (refused, or took too long) or `RunnerDied`; the child is gone then."""
        if self.stopping:
            raise self._obituary(self.model)
        try:
            self._child = self._new_child()
        except OSError as error:
            raise LoadFailed(f"no runner could be started for {self.model}: {error.strerror or error}") from None
        wire = self._wire = Wire(self._deliver, f"the runner of {self.model} (pid {self.pid})")
        await asyncio.get_running_loop().create_unix_connection(lambda: wire, sock=self._child.socket)
        self._owner = asyncio.create_task(self._own(self._child, wire), name=f"runner {self.pid}")
        if self.stopping:  # while the socket was opened
            wire.hang_up()
        self._send(self.load)
        try:
            return await asyncio.wait_for(asyncio.shield(self._loaded), self._timeout)
        except TimeoutError:
            raise LoadFailed(
                f"loading {self.model} took longer than {self._timeout:g} s",
                hint="MODELCTL_LOAD_TIMEOUT sets the limit",
            ) from None
        finally:
            if not self._loaded.done() or self._loaded.exception() is not None:
                await self.stop()

    def submit(self, generations: Sequence[Generate], model: str) -> Stream:
        """Start generations from one prompt; their ids are set here. Close the stream if you stop before its end.

        The others start when the first has spoken: then its prompt is computed, and they share it.
        """
        stream = Stream(model, generations, self)
        self._start(stream, 1)
        return stream

    def cancel(self, stream: Stream) -> None:
        stream.later.clear()
        for id in stream.ids:
            if self._pending.pop(id, None) is not None:
                self._send(Cancel(id))

    def remix(self, stream: Stream, mix: list[tuple[str, float]]) -> None:
        for generation in stream.later:
            generation.mix = mix
        if running := [id for id in stream.ids if id in self._pending]:
            self._send(Remix(next(self._ids), running, mix))

    async def attach(self, adapters: list[AdapterFile], model: str) -> Attached:
        return await self._reply(Attach(next(self._ids), adapters), Attached, model)

    async def render(self, prompt: Prompt, n_ctx: int, model: str) -> Rendered:
        return await self._reply(Render(next(self._ids), prompt, n_ctx), Rendered, model)

    async def tokenize(self, text: str, special: bool, bos: bool, model: str) -> Rendered:
        return await self._reply(Tokenize(next(self._ids), text, special, bos), Rendered, model)

    async def detokenize(self, tokens: list[int], model: str) -> Rendered:
        return await self._reply(Detokenize(next(self._ids), tokens), Rendered, model)

    async def embed(self, inputs: list[str], mix: list[tuple[str, float]], truncate: bool, model: str) -> Embedded:
        return await self._reply(Embed(next(self._ids), inputs, mix, truncate), Embedded, model)

    async def stats(self) -> StatsReply:
        return await self._reply(Stats(next(self._ids)), StatsReply, self.model)

    async def stop(self) -> None:
        """End the child: by the end of its socket, after `GRACE` seconds (or in a load, at once) by force.

        Returns when it is gone.
        """
        self.stopping = True
        if self._child is None or self._owner is None or self._wire is None:
            return
        if not self._loaded.done():
            self._child.kill()
        self._wire.hang_up()
        await asyncio.shield(self._owner)

    # asking

    def _start(self, stream: Stream, n: int) -> None:
        started, stream.later = stream.later[:n], stream.later[n:]
        for generation in started:
            generation.id = next(self._ids)
            stream.ids.append(generation.id)
            self._ask(generation, stream)

    async def _reply(self, frame: Question, kind: type[T], model: str) -> T:
        reply = Reply(model)
        self._ask(frame, reply)
        try:
            answer = await reply.future
        finally:
            self._pending.pop(frame.id, None)
        if not isinstance(answer, kind):
            raise ModelctlError(f"the runner answered {type(frame).__name__} with {type(answer).__name__}")
        return answer

    def _ask(self, frame: Generate | Question, pending: Stream | Reply) -> None:
        if self._owner is None or self._owner.done() or self.stopping:
            pending.fail(self._obituary(pending.model))
            return
        self._pending[frame.id] = pending
        self._send(frame)

    def _send(self, frame: ToRunner) -> None:
        if self._wire is not None:
            self._wire.send(pack(frame))

    # the owner

    async def _own(self, child: Child, wire: Wire) -> None:
        either: set[asyncio.Future[Any]] = {wire.closed, child.exited}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if child.exited.done():
                child.kill()  # a grandchild with a copy of the socket would keep us reading
            await asyncio.wait(either, timeout=GRACE)  # the dead: their last frames; who hung up: time to end
        finally:
            await self._bury(child, wire)

    async def _bury(self, child: Child, wire: Wire) -> None:
        child.kill()
        code = await child.exited
        wire.hang_up()
        self.last_words = describe_exit(code) + (f": {child.last_lines[-1]}" if child.last_lines and code else "")
        if not self.stopping:
            log.warning("the runner of %s (pid %d) stopped: %s", self.model, child.pid, self.last_words)
        if not self._loaded.done():
            self._loaded.set_exception(self._obituary(self.model))
        self._loaded.exception()  # seen: nobody may be waiting for it
        for pending in list(self._pending.values()):
            pending.fail(self._obituary(pending.model))
        self._pending.clear()
        self._on_exit(self)

    def _obituary(self, model: str) -> RunnerDied:
        if self.stopping:
            return RunnerDied(f"the runner of {model} was stopped")
        hint = "the next request starts a new one; `modelctl logs` has its last words"
        return RunnerDied(f"the runner of {model} stopped ({self.last_words})", hint=hint)

    def _deliver(self, frame: FromRunner) -> None:
        match frame:
            case Step():
                for delta in frame.deltas:
                    self._deliver_delta(delta)
            case Ready():
                if not self._loaded.done():
                    self._loaded.set_result(frame)
            case Failed(id=0):
                if not self._loaded.done():
                    error = LoadFailed(frame.message, hint=frame.hint or None)
                    error.status = frame.status
                    self._loaded.set_exception(error)
            case Failed():
                if (pending := self._pending.pop(frame.id, None)) is not None:
                    pending.fail(failure(frame))
            case _:
                reply = self._pending.pop(frame.id, None)
                if isinstance(reply, Reply):
                    reply.put(frame)

    def _deliver_delta(self, delta: Delta) -> None:
        stream = self._pending.get(delta.id)
        if not isinstance(stream, Stream):
            return
        if delta.done is not None:
            del self._pending[delta.id]
        stream.put(delta)
        if stream.later:
            self._start(stream, len(stream.later))
