"""The time a client may take to read."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from modelctl.daemon import protocol
from modelctl.daemon.protocol import LimitedProtocol


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

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(endless, http=LimitedProtocol, ws="none", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _, writer = await asyncio.open_connection(*listener.getsockname(), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await gone.wait()
        writer.close()
        server.should_exit = True
        await serving
