"""Request bodies in, JSON replies out; and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from modelctl.daemon.protocol import Pipe
from modelctl.errors import BadRequest, ModelctlError, TooLarge

T = TypeVar("T")

MAX_BODY = 16 << 20  # bytes
BODY_TIMEOUT = 60.0  # seconds for all of it


class UnsupportedEncoding(ModelctlError):
    status = 415


class SlowClient(ModelctlError):
    status = 408


async def read(request: Request, kind: type[T]) -> T:
    """The JSON body as a `kind`. Raises `BadRequest`, `TooLarge`, `UnsupportedEncoding` or `SlowClient`.

    The content type is not looked at: `curl -d` sends a form's, and foreign pages are turned away by their Origin.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedEncoding("compressed request bodies are not accepted", hint="send the JSON as it is")
    _check_size(int(request.headers.get("content-length", 0)))  # the server has made sure that it is a number
    pipe = Pipe.of(request.scope)
    collected = _collect(request.receive)
    try:
        data = await (collected if pipe and pipe.has_all else asyncio.wait_for(collected, BODY_TIMEOUT))
    except TimeoutError:
        raise SlowClient(f"the request body did not arrive within {BODY_TIMEOUT:g} s") from None
    if not data.strip():
        raise BadRequest("missing request body")
    return decode(data, kind)


def decode(data: bytes, kind: type[T]) -> T:
    """Raises `BadRequest` for whatever is wrong: syntax, types, numbers out of range, depth."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request body is wrong: {error}") from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


async def _collect(receive: Receive) -> bytes:
    data = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the request body ended early")
        data += message.get("body", b"")
        more = message.get("more_body", False)
        _check_size(len(data))
    return bytes(data)


def _check_size(size: int) -> None:
    if size > MAX_BODY:
        raise TooLarge(f"the request body is larger than {MAX_BODY >> 20} MiB")


def reply(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but cancel it as soon as the client is gone. The request's body must have been read."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = not task.done()
        watch.cancel()
        task.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    try:
        await task
    except asyncio.CancelledError:
        if not left:
            raise


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
