"""What the daemon does with requests it should not obey: one clear error in the dialect of the path, and no harm."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl.daemon.app import ROUTES
from modelctl.parser import PARAMETERS
from tests.daemon.conftest import Daemon

CHANGING = [(method, route.path) for route in ROUTES for method in route.methods or () if method in ("POST", "DELETE")]


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon) -> Iterator[None]:
    """Whatever was asked, the same daemon answers afterwards and knows the same models."""
    yield
    assert daemon.process.poll() is None
    names = [model["name"] for model in daemon.get("/api/tags").json()["models"]]
    assert sorted(names) == ["plain:latest", "tutor:latest"]


def error_of(response: requests.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    error = response.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_the_ways_to_say_hello(daemon: Daemon) -> None:
    assert daemon.get("/").text == "modelctl is running"
    assert daemon.get("/api/version").json()["version"]
    for path in ("/", "/api/version", "/api/tags"):
        head = requests.head(daemon.url + path, timeout=60)
        assert (head.status_code, head.content) == (200, b"")


def test_tags_and_show(daemon: Daemon) -> None:
    tagged = {model["name"]: model for model in daemon.get("/api/tags").json()["models"]}
    tutor = tagged["tutor:latest"]
    assert set(tutor) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert len(tutor["digest"]) == 64 and tutor["size"] > 98_000_000
    shown = daemon.post("/api/show", {"model": "tutor"}).json()
    assert [(a["id"], a["name"], a["rank"], a["alpha"]) for a in shown["adapters"]] == [
        (0, "pirate", 4, 8.0),
        (1, "json", 4, 8.0),
        (2, "shout", 4, 8.0),
    ]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["general.parameter_count"] > 130_000_000
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert "ADAPTER" in shown["modelfile"] and "AS pirate" in shown["modelfile"]
    assert shown["capabilities"] == ["completion"] and shown["details"]["format"] == "gguf"
    parameters = dict(line.split() for line in shown["parameters"].splitlines())
    assert parameters == {"temperature": "0.0", "num_ctx": "1024", "num_thread": "1"}
    assert daemon.post("/api/show", {"name": "tutor"}).json() == shown


def test_copy_and_delete(daemon: Daemon) -> None:
    copied = daemon.post("/api/copy", {"source": "tutor", "destination": "me/Second:v1"})
    assert (copied.status_code, copied.content) == (200, b"")
    assert daemon.post("/api/show", {"model": "me/second:V1"}).status_code == 200
    deleted = requests.delete(daemon.url + "/api/delete", json={"model": "me/second:v1"}, timeout=60)
    assert (deleted.status_code, deleted.content) == (200, b"")
    again = requests.delete(daemon.url + "/api/delete", json={"model": "me/second:v1"}, timeout=60)
    assert again.status_code == 404 and error_of(again) == "model 'me/second:v1' not found"
    missing = daemon.post("/api/copy", {"source": "nobody", "destination": "x"})
    assert missing.status_code == 404 and error_of(missing) == "model 'nobody' not found"
    assert error_of(daemon.post("/api/copy", {"source": "tutor"})) == "destination is required"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": NaN}',
        b'{"model": "plain", "options": {"temperature": Infinity}}',
        b'{"model": "plain", "options": {"temperature": 1e999}}',
        b'{"model": "plain", "options": {"seed": ' + b"9" * 5000 + b"}}",
        b"[" * 100_000,
        b'{"model": "plain", "options": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"model": "plain", "prompt": "\\ud800"}',
        b'{"model": "\\ud800x"}',
        b'{"model": "\xff"}',
        b'\xef\xbb\xbf{"model": "plain"}',
        '{"model": "plain"}'.encode("utf-16"),
        b'{"model": "plain"',
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"",
        b"   ",
        b'{"model": ["plain"]}',
        b'{"model": "plain", "messages": "hi"}',
        b'{"model": "plain", "messages": [{"content": "hi"}]}',
        b'{"model": "plain", "stream": "yes"}',
        b'{"model": "a\\u0000b", "messages": []}',
        b"{}",
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_broken_bodies(daemon: Daemon, path: str, body: bytes) -> None:
    response = requests.post(daemon.url + path, data=body, timeout=60)
    assert response.status_code == 400, response.text
    assert error_of(response)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": "yaml"}, 'format must be "json" or a JSON schema'),
        ({"format": 7}, "format must be"),
        ({"format": {"enum": ["x" * 70_000]}}, "the limit is 65536"),
        ({"keep_alive": "soon"}, "expected a duration"),
        ({"top_logprobs": 21, "logprobs": True}, "from 0 to 20"),
        ({"top_logprobs": -1, "logprobs": True}, "from 0 to 20"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"images": ["aGk="]}, "does not support images"),
        ({"think": True}, "does not support thinking"),
        ({"raw": True, "system": "x"}, "raw mode does not support"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"num_ctx": -5}}, "num_ctx"),
        ({"lora": {"nobody": 1.0}}, "nobody"),
        ({"lora": {"pirate": "much"}}, "must be a number"),
        ({"lora": {"pirate": True}}, "must be a number"),
        ({"lora": {"pirate": 1e38}}, "from -100 to 100"),
        ({"lora": {"pirate": 1.0, "0": 0.5}}, "twice"),
        ({"lora": [{"id": 0, "scale": 1}, {"id": 0, "scale": 2}]}, "given twice"),
        ({"lora": [{"scale": 1}]}, "either an id or a name"),
        ({"lora": [{"id": 0, "name": "pirate", "scale": 1}]}, "either an id or a name"),
        ({"lora": [{"id": 9, "scale": 1}]}, "no adapter"),
        ({"lora": [{"id": 0}]}, "scale"),
        ({"model": "tutor+pirate=x"}, "must be a number"),
        ({"model": "tutor+"}, "ADAPTER=SCALE"),
        ({"model": "tutor+nobody"}, "nobody"),
        ({"model": "../../etc/passwd"}, "not a model name"),
        ({"model": "a" * 300}, "not a model name"),
        ({"model": "．．/x"}, "not a model name"),
    ],
)
def test_wrong_fields(daemon: Daemon, fields: dict[str, Any], says: str) -> None:
    response = daemon.post("/api/generate", {"model": "tutor", "prompt": "hi", **fields})
    assert response.status_code in (400, 404), response.text
    assert says in error_of(response)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 10**6}, "n must be from 1 to 8"),
        ({"n": 0}, "n must be from 1 to 8"),
        ({"logit_bias": {"hello": 1}}, "is no token id"),
        ({"logit_bias": {"5": 100.5}}, "from -100 to 100"),
        ({"logit_bias": {"-1": 1}}, "is no token id"),
        ({"max_tokens": 0}, "max_tokens must be above 0"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be text"),
        ({"tools": [{"type": "function"}]}, "does not support tools"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_wrong_openai_fields(daemon: Daemon, fields: dict[str, Any], says: str) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "hi"}], **fields}
    response = daemon.post("/v1/chat/completions", body)
    assert response.status_code == 400, response.text
    assert says in error_of(response)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_models(daemon: Daemon) -> None:
    for path in ("/api/chat", "/api/generate", "/api/show", "/v1/completions"):
        response = daemon.post(path, {"model": "tuter", "prompt": "hi"})
        assert response.status_code == 404, path
        assert error_of(response).startswith("model 'tuter' not found")
    assert "tutor" in daemon.post("/api/chat", {"model": "tuter"}).json()["hint"]
    assert daemon.get("/v1/models/nobody").json()["error"]["type"] == "not_found_error"
    assert daemon.get("/v1/models/tutor+nobody").status_code == 404


def test_lora_changes_apply_whole_or_not_at_all(daemon: Daemon) -> None:
    def scales() -> list[float]:
        listed = daemon.get("/api/lora-adapters", params={"model": "tutor"}).json()["adapters"]
        return [adapter["scale"] for adapter in listed]

    good, before = {"id": 0, "scale": 0.5}, scales()
    for bad in (
        {"id": 3, "scale": 1},
        {"id": 1, "scale": "x"},
        {"name": "nobody", "scale": 1},
        {"id": 1, "scale": 101},
    ):
        response = daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": [good, bad]})
        assert response.status_code in (400, 404) and error_of(response)
        assert scales() == before
    no_list = daemon.post("/api/lora-adapters", {"model": "tutor"})
    assert no_list.status_code == 400 and "adapters" in error_of(no_list)
    unknown = daemon.post("/api/lora-adapters", {"model": "nobody", "adapters": [good]})
    assert unknown.status_code == 404
    mixed = daemon.post("/api/lora-adapters", {"model": "tutor+pirate", "adapters": [good]})
    assert mixed.status_code == 400 and "without a mix" in error_of(mixed)
    plain = daemon.post("/api/lora-adapters", {"model": "plain", "adapters": [good]})
    assert plain.status_code == 404 and "no adapter" in error_of(plain)


def test_recreating_a_name_resets_its_scales(daemon: Daemon) -> None:
    def names_and_scales() -> dict[str, float]:
        listed = daemon.get("/api/lora-adapters", params={"model": "reborn"}).json()["adapters"]
        return {adapter["name"]: adapter["scale"] for adapter in listed}

    try:
        daemon.post("/api/copy", {"source": "tutor", "destination": "reborn"})
        daemon.post("/api/lora-adapters", {"model": "reborn", "adapters": [{"name": "json", "scale": -0.5}]})
        assert names_and_scales() == {"pirate": 0.0, "json": -0.5, "shout": 0.0}
        daemon.post("/api/copy", {"source": "plain", "destination": "reborn"})
        assert names_and_scales() == {}
        daemon.post("/api/copy", {"source": "tutor", "destination": "reborn"})
    finally:
        requests.delete(daemon.url + "/api/delete", json={"model": "reborn"}, timeout=60)


def test_routes_that_are_not(daemon: Daemon) -> None:
    for path in ("/api/nothing", "/v1/nothing", "/api/tags/", "//", "/api/../etc/passwd"):
        response = requests.get(daemon.url + path, timeout=60, allow_redirects=False)
        assert response.status_code == 404 and error_of(response)
    wrong = daemon.get("/api/chat")
    assert wrong.status_code == 405 and error_of(wrong) and wrong.headers["allow"] == "POST"
    assert requests.put(daemon.url + "/api/tags", timeout=60).status_code == 405


def test_bodies_too_large(daemon: Daemon) -> None:
    big = daemon.post("/api/chat", {"model": "plain", "pad": "x" * (17 << 20)})
    assert big.status_code == 413 and "16 MiB" in error_of(big)
    endless = (b"x" * (1 << 20) for _ in range(20))  # no Content-Length
    assert requests.post(daemon.url + "/api/chat", data=endless, timeout=60).status_code == 413
    packed = daemon.post("/api/chat", {"model": "plain"}, headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and error_of(packed)


def test_a_form_content_type_is_fine(daemon: Daemon) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(daemon.url + "/api/show", data=b'{"model":"plain"}', headers=headers, timeout=60).ok


@pytest.mark.parametrize(
    "host",
    ["evil.com", "evil.com:11435", "localhost.evil.com", "127.0.0.1.nip.io", "0.0.0.0", "localhost@evil.com", ""],
)
def test_foreign_hosts(daemon: Daemon, host: str) -> None:
    reply = daemon.raw(f"GET /api/tags HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 403") and b"tutor" not in reply


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "LOCALHOST:80", "[::1]:11435"])
def test_local_hosts(daemon: Daemon, host: str) -> None:
    reply = daemon.raw(f"GET /api/tags HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /api/tags HTTP/1.1\r\nConnection: close\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n",
        b"GET http://evil.com/api/tags HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 120,
        b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: five\r\n",
        b"nonsense\r\n",
    ],
)
def test_broken_heads(daemon: Daemon, head: bytes) -> None:
    reply = daemon.raw(head + b"\r\n")
    assert reply.startswith(b"HTTP/1.1 400"), reply[:200]


def test_a_head_without_end(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 << 20:
                sent += connection.send(b"X: " + b"x" * 65536)
        assert sent < 64 << 20


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.com"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.com"},
        {"Origin": "http://notlocalhost"},
        {"Origin": "http://127.0.0.1.evil.com:80"},
        {"Origin": "http://localhost:80.evil.com"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_foreign_pages_change_nothing(daemon: Daemon, headers: dict[str, str]) -> None:
    for method, path in CHANGING:
        body = json.dumps({"model": "plain", "source": "plain", "destination": "stolen", "adapters": []})
        response = requests.request(method, daemon.url + path, data=body, headers=headers, timeout=60)
        assert response.status_code == 403 and error_of(response), path
        assert "access-control-allow-origin" not in response.headers
    preflight = {**headers, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in requests.options(daemon.url + "/api/chat", headers=preflight).headers


def test_local_pages(daemon: Daemon) -> None:
    for origin in (
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:80",
        "app://obsidian.md",
        "tauri://localhost",
    ):
        response = daemon.get("/api/version", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    preflight = requests.options(daemon.url + "/api/chat", headers=asked, timeout=60)
    assert preflight.status_code == 204 and "POST" in preflight.headers["access-control-allow-methods"]


def test_configured_origins(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon(MODELCTL_ORIGINS="https://chat.example.org,http://*.example.com")
    for origin, status in (
        ("https://chat.example.org", 200),
        ("http://a.example.com", 200),
        ("http://chat.example.org", 403),
        ("http://example.com", 403),
    ):
        assert daemon.get("/api/version", headers={"Origin": origin}).status_code == status


ODD: st.SearchStrategy[object] = st.one_of(
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), -0.0, 1e308, -1e308, "1", "", None, [], {}, True, [""]]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
OPTIONS = st.sampled_from([*PARAMETERS, "unknown"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.dictionaries(OPTIONS, ODD, max_size=3),
    field=st.sampled_from(["options", "lora", "keep_alive"]),
    value=ODD,
)
def test_odd_values_never_fail_inside(daemon: Daemon, options: dict[str, object], field: str, value: object) -> None:
    """Checked before anything is loaded: an unknown adapter ends the request after its options were read."""
    body = {"model": "tutor", "prompt": "hi", "options": options, field: value, "think": True}
    response = daemon.post("/api/generate", body)
    assert response.status_code in (400, 404), (body, response.text)
    assert error_of(response)
