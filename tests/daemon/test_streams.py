"""Deltas on two ways to one client: through the reader's task, or past it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from modelctl.daemon.streams import Stream
from modelctl.runner.frames import Delta, Done, Generate, Prompt

DONE = Done("stop", 3, 0, 1, 1, 2, 1)


class Source:
    def cancel(self, stream: Stream) -> None: ...

    def remix(self, stream: Stream, mix: list[tuple[str, float]]) -> None: ...


def play(scenario: Callable[[Stream, list[str]], Awaitable[None]]) -> list[str]:
    """What the client got, in order; the reader's words in capitals."""
    got: list[str] = []

    async def read(stream: Stream) -> None:
        async for delta in stream:
            got.append(delta.text.upper())
            await asyncio.sleep(0)

    async def run() -> None:
        stream = Stream("tutor", [Generate(0, Prompt(raw="a"))], Source())
        stream.ids.append(7)
        reading = asyncio.create_task(read(stream))
        await scenario(stream, got)
        stream.put(Delta(7, ".", done=DONE))
        await reading

    asyncio.run(asyncio.wait_for(run(), 60))
    return got


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_delta_goes_directly_only_while_the_reader_waits() -> None:
    async def scenario(stream: Stream, got: list[str]) -> None:
        def direct(delta: Delta) -> bool:
            got.append(delta.text)
            return True

        stream.put(Delta(7, "a"))
        await settle()
        stream.direct = direct
        stream.put(Delta(7, "b"))
        stream.direct = None
        stream.put(Delta(7, "c"))
        stream.direct = direct
        stream.put(Delta(7, "d"))  # would overtake c
        await settle()
        stream.put(Delta(7, "e"))

    assert play(scenario) == ["A", "b", "C", "D", "e", "."]


def test_what_cannot_go_directly_waits_for_the_reader() -> None:
    async def scenario(stream: Stream, got: list[str]) -> None:
        await settle()
        stream.direct = lambda delta: False
        stream.put(Delta(7, "a"))
        await settle()

        def broken(delta: Delta) -> bool:
            raise RuntimeError

        stream.direct = broken
        stream.put(Delta(7, "b"))

    assert play(scenario) == ["A", "B", "."]
