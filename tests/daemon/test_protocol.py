"""The short cut for tokens, and the time a client may take to read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelctl.daemon import protocol
from modelctl.daemon.protocol import Pipe, Together
from tests.daemon.served import served

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_client_that_stops_reading_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_TIMEOUT", 0.05)
    asyncio.run(asyncio.wait_for(_serve_one_who_does_not_read(), 60))


async def _serve_one_who_does_not_read() -> None:
    gone = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        async def pour() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not gone.is_set():
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
                await asyncio.sleep(0)

        pouring = asyncio.create_task(pour())
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        await pouring

    async with served(endless) as (_, writer):
        writer.write(REQUEST)
        await gone.wait()


def test_pieces_past_asgi_arrive_between_those_that_go_through_it() -> None:
    assert asyncio.run(asyncio.wait_for(_pipe_into_a_body(), 60)) == b"abcd"


async def _pipe_into_a_body() -> bytes:
    open_: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pipe = Pipe.of(scope)
        assert pipe is not None
        open_.append(pipe.is_open)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        open_.append(pipe.is_open)
        for piece in (b"b", b"", b"c"):
            pipe.write(piece)
        await send({"type": "http.response.body", "body": b"d", "more_body": False})
        open_.append(pipe.is_open)

    async with served(app) as (reader, writer):
        writer.write(REQUEST)
        body = b""
        await reader.readuntil(b"\r\n\r\n")
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    assert open_ == [False, True, False]
    return body


def test_what_is_written_in_one_turn_of_the_loop_is_one_packet_and_nothing_is_lost_or_overtaken() -> None:
    sent: list[bytes] = []

    class Transport:
        def write(self, data: bytes) -> None:
            sent.append(data)

        def is_closing(self) -> bool:
            return b"closed" in sent

        def close(self) -> None:
            sent.append(b"closed")

    async def write() -> None:
        together = Together(Transport(), asyncio.get_running_loop())  # type: ignore[arg-type]
        together.write(b"head ")
        together.write(b"body")
        await asyncio.sleep(0)
        together.write(b"last")
        together.write_now(b"token")
        together.write(b"end")
        together.close()
        together.write(b"too late")
        await asyncio.sleep(0)

    asyncio.run(write())
    assert sent == [b"head body", b"last", b"token", b"end", b"closed"]
