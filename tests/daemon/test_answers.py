"""An answer on its way out, against a client made of two functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from starlette.responses import Response

from modelctl.daemon.answers import Answer, Later, Mould, joined, timestamp
from modelctl.daemon.streams import Direct
from modelctl.errors import BadRequest, ModelctlError, RunnerDied
from modelctl.runner.frames import Delta, Done

DONE = Done("stop", 3, 0, 1, 1, 2, 1)


class Plain:
    """A dialect one can read."""

    media_type = "text/plain"

    def piece(self, delta: Delta) -> bytes:
        return delta.text.encode() + (b"." if delta.done else b"")

    def whole(self, deltas: list[Delta]) -> bytes:
        delta = joined(deltas)
        return f"{delta.text}|{delta.n_tokens}|{delta.done and delta.done.reason}".encode()

    def error(self, error: ModelctlError) -> bytes:
        return f"!{error.message}".encode()


class Deltas:
    """Says its words, then raises or ends; knows whether it was closed."""

    def __init__(self, *words: str, error: Exception | None = None, hang: bool = False) -> None:
        self._words, self._error, self._hang = words, error, hang
        self.closed = False

    async def __call__(self, direct: Direct | None = None) -> AsyncIterator[Delta]:
        try:
            for word in self._words:
                yield Delta(1, word)
            if self._hang:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
            yield Delta(1, "", 0, done=DONE)
        finally:
            self.closed = True


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def answer(
    deltas: Deltas,
    *,
    stream: bool = True,
    receive: Callable[[], Awaitable[dict[str, Any]]] = never,
    send: Callable[[Any], Awaitable[None]] | None = None,
) -> list[dict[str, Any]]:
    """The ASGI messages that were sent."""
    sent: list[dict[str, Any]] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    response = Answer(deltas, Plain(), stream=stream)
    asyncio.run(asyncio.wait_for(response({"type": "http"}, receive, send or keep), 60))
    return sent


def body(sent: list[dict[str, Any]]) -> bytes:
    assert sent[0]["status"] == 200
    assert not sent[-1].get("more_body", False)
    return b"".join(message["body"] for message in sent[1:])


def test_streamed_and_whole() -> None:
    assert body(answer(Deltas("a", "b"))) == b"ab."
    assert body(answer(Deltas("a", "b"), stream=False)) == b"ab|2|stop"


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_word_is_raised(stream: bool) -> None:
    deltas = Deltas(error=BadRequest("too long"))
    with pytest.raises(BadRequest):
        answer(deltas, stream=stream)
    assert deltas.closed


def test_an_error_later_is_the_last_piece() -> None:
    assert body(answer(Deltas("a", error=RunnerDied("it died")))) == b"a!it died"
    assert b"KeyError" not in body(answer(Deltas("a", error=KeyError("secret"))))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_closes_the_deltas(stream: bool) -> None:
    async def leave() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    deltas = Deltas("a", hang=True)
    answer(deltas, stream=stream, receive=leave)
    assert deltas.closed


def test_a_reply_in_the_making_ends_when_its_client_leaves() -> None:
    begun, ended = [], []

    async def make() -> Response:
        begun.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError

    async def leave() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def refuse(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(asyncio.wait_for(Later(make)({"type": "http"}, leave, refuse), 60))
    assert begun == ended == [True]


def test_joined_keeps_the_end() -> None:
    whole = joined([Delta(7, "a", 2), Delta(7, "b"), Delta(7, "", 0, done=DONE)])
    assert (whole.id, whole.text, whole.n_tokens, whole.done) == (7, "ab", 3, DONE)


def test_a_mould_takes_any_text() -> None:
    mould = Mould(
        msgspec.json.encode({"model": "tutor", "first": Mould.GAP, "done": False, "second": Mould.GAP}) + b"\n"
    )
    for texts in (("", "a"), ('"quoted"', "new\nline"), (Mould.GAP, "é🏴")):
        line = mould.cast(*texts)
        assert json.loads(line) == {"model": "tutor", "first": texts[0], "done": False, "second": texts[1]}
        assert line.endswith(b"\n")


def test_timestamps_are_what_clients_parse() -> None:
    assert timestamp(1_000_000_000.5) == "2001-09-09T01:46:40.500000Z"
