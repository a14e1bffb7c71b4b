"""Bodies that come late, in pieces, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from modelctl.daemon import bodies
from modelctl.daemon.bodies import SlowClient, read
from modelctl.errors import BadRequest, ModelctlError
from tests.daemon.served import served


class Asked(msgspec.Struct):
    text: str


def body_of(*pieces: bytes, length: int | None = None, leave: bool = False) -> str:
    """What `read` makes of a body that is sent piece by piece; `leave`: and then the client is gone. Raises its error.

    `length`: as the head has it; None: what is sent.
    """
    return asyncio.run(
        asyncio.wait_for(_body_of(pieces, sum(map(len, pieces)) if length is None else length, leave), 60)
    )


async def _body_of(pieces: Sequence[bytes], length: int, leave: bool) -> str:
    got: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            got.set_result(await read(Request(scope, receive, send), Asked))
        except ModelctlError as error:
            got.set_exception(error)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as (_, writer):
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
        first, *rest = pieces or [b""]
        writer.write(head + first)
        for piece in rest:
            await asyncio.sleep(0.02)
            writer.write(piece)
        if leave:
            writer.close()
        return (await got).text


def test_a_body_that_comes_with_its_head() -> None:
    assert body_of(b'{"text": "whole"}') == "whole"


def test_a_body_in_pieces() -> None:
    assert body_of(b'{"te', b'xt": "in p', b'ieces"}') == "in pieces"
    assert body_of(b"", b'{"text": "after its head"}') == "after its head"


@pytest.mark.parametrize("piece", [b"", b'{"text":'])
def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.05)
    with pytest.raises(SlowClient, match="did not arrive"):
        body_of(piece, length=100)


@pytest.mark.parametrize("piece", [b"", b'{"text":'])
def test_a_client_that_leaves_before_its_body_is_whole(piece: bytes) -> None:
    with pytest.raises(BadRequest, match="ended early"):
        body_of(piece, length=100, leave=True)


def test_no_body() -> None:
    with pytest.raises(BadRequest, match="missing"):
        body_of()
