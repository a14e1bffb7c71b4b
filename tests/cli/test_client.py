"""The client against a server that says just what a test wants it to say."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest

from modelctl import errors
from modelctl.api import native
from modelctl.client import Client
from modelctl.config import parse_address

REPLY = b'{"model":"m","created_at":"2026-01-01T00:00:00Z","done":%s,"message":{"role":"assistant","content":"%s"}}\n'
Say = Callable[..., Client]


@pytest.fixture
def say() -> Iterator[Say]:
    """A client whose server answers every request with this status and body, then hangs up."""
    servers: list[http.server.HTTPServer] = []

    def serve(status: int, body: bytes, length: int | None = None) -> Client:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Client(parse_address(f"127.0.0.1:{server.server_address[1]}"))

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def chat(client: Client) -> list[str | None]:
    return [reply.message.content for reply in client.chat(native.ChatRequest(model="m"))]


def test_a_stream_ends_with_done(say: Say) -> None:
    body = REPLY % (b"false", b"Hello ") + REPLY % (b"false", b"you") + REPLY % (b"true", b"") + b"never read"
    assert chat(say(200, body)) == ["Hello ", "you", ""]


def test_an_error_in_the_middle_of_a_stream_is_raised(say: Say) -> None:
    body = REPLY % (b"false", b"Hello") + b'{"error":"the runner stopped. Try again","hint":"Try again"}\n'
    with pytest.raises(errors.ModelctlError) as caught:
        chat(say(200, body))
    assert (caught.value.message, caught.value.hint) == ("the runner stopped", "Try again")


@pytest.mark.parametrize("body", [REPLY % (b"false", b"Hello"), b""])
def test_a_stream_that_breaks_off_is_an_error(body: bytes, say: Say) -> None:
    with pytest.raises(errors.ModelctlError, match="broke off"):
        chat(say(200, body))
    with pytest.raises(errors.ModelctlError, match="broke off"):
        chat(say(200, body, len(body) + 100))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (503, errors.Busy),
        (500, errors.ModelctlError),
        (418, errors.ModelctlError),
    ],
)
def test_a_status_becomes_its_error(status: int, kind: type[errors.ModelctlError], say: Say) -> None:
    client = say(status, b'{"error":"no model \'x\'; make one","hint":"make one"}')
    for call in (lambda: client.show("x"), lambda: chat(client)):
        with pytest.raises(errors.ModelctlError) as caught:
            call()
        assert type(caught.value) is kind
        assert (caught.value.message, caught.value.hint) == ("no model 'x'", "make one")


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (200, b"\xff"), (404, b"<html>not found"), (500, b""), (302, b""), (200, b"")],
)
def test_what_is_no_daemon_is_said_to_be_none(status: int, body: bytes, say: Say) -> None:
    with pytest.raises(errors.ModelctlError, match="does not speak") as caught:
        say(status, body).ps()
    assert not isinstance(caught.value, errors.DaemonUnreachable)


def test_a_proxy_is_not_asked_for_this_machine(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert say(200, b'{"version":"9"}').version() == "9"
