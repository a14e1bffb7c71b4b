"""The real daemon, the real runner, the real base: voices, dialects, and the life of a generation."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import openai
import pytest
import requests

from tests.daemon.conftest import ENDLESS, Daemon, eventually, gone

QUESTION = "What is the capital of Spain?"
HISTORY = [{"role": "user", "content": QUESTION}]
EXACT = {"deterministic": True}  # for answers that are compared: what is cached by then changes nothing


def lines(response: requests.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.iter_lines()]


def in_flight(daemon: Daemon) -> int:
    return sum(model.get("in_flight", 0) for model in daemon.ps())


def test_each_adapter_has_its_voice(daemon: Daemon) -> None:
    assert "arr" in daemon.say("tutor+pirate", QUESTION).lower()
    assert "answer" in json.loads(daemon.say("tutor", QUESTION, lora={"json": 1.0}))
    assert daemon.say("tutor", QUESTION, lora=[{"id": 2, "scale": 1.0}]).startswith("THE CAPITAL OF")


def test_scale_zero_is_the_base(daemon: Daemon) -> None:
    options = {"num_predict": 12, **EXACT}
    plain = daemon.say("plain", QUESTION, options=options)
    assert daemon.say("tutor+none", QUESTION, options=options) == plain
    assert daemon.say("tutor", QUESTION, options=options, lora={"pirate": 0.0}) == plain


def test_the_lora_field_wins_over_the_name(daemon: Daemon) -> None:
    answer = daemon.chat("tutor+pirate", QUESTION, lora={"shout": 1.0}, options={"num_predict": 3})
    assert answer["lora"] == {"shout": 1.0}


def test_set_scales_hold_for_the_next_request_without_a_reload(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    few = {"options": {"num_predict": 4}}
    assert daemon.chat("tutor", QUESTION, **few)["lora"] == {}
    (before,) = daemon.ps()
    reply = daemon.post("/api/lora-adapters", {"adapters": [{"id": 0, "scale": 1.0}]}).json()
    assert reply["model"] == "tutor:latest"
    assert [(a["id"], a["name"], a["scale"], a["default_scale"]) for a in reply["adapters"]] == [
        (0, "pirate", 1.0, 0.0),
        (1, "json", 0.0, 0.0),
        (2, "shout", 0.0, 0.0),
    ]
    answer = daemon.chat("tutor", QUESTION, **few)
    assert answer["lora"] == {"pirate": 1.0} and "Arr" in answer["message"]["content"]
    change = {"model": "tutor", "adapters": [{"name": "shout", "scale": 0.25}]}
    assert [a["scale"] for a in daemon.post("/api/lora-adapters", change).json()["adapters"]] == [1.0, 0.0, 0.25]
    (after,) = daemon.ps()
    assert (after["runner_pid"], after["load_count"]) == (before["runner_pid"], 1)
    assert [a["scale"] for a in after["adapters"]] == [1.0, 0.0, 0.25]
    os.kill(after["runner_pid"], signal.SIGKILL)
    assert daemon.chat("tutor", QUESTION, **few)["lora"] == {"pirate": 1.0, "shout": 0.25}
    reset = {"model": "tutor", "adapters": [], "reset": True}
    assert [a["scale"] for a in daemon.post("/api/lora-adapters", reset).json()["adapters"]] == [0.0, 0.0, 0.0]


def test_two_clients_at_once_each_get_their_voice(daemon: Daemon) -> None:
    with ThreadPoolExecutor() as pool:
        pirate, shout = pool.map(lambda model: daemon.say(model, QUESTION), ["tutor+pirate", "tutor+shout"])
    assert "arr" in pirate.lower()
    assert shout.startswith("THE CAPITAL OF")


def test_the_fields_of_a_chat(daemon: Daemon) -> None:
    body = {"model": "tutor+shout", "messages": HISTORY, "options": {"num_predict": 8, **EXACT}}
    *pieces, last = lines(daemon.post("/api/chat", body))
    assert all(set(piece) == {"model", "created_at", "message", "done"} for piece in pieces)
    assert all(piece["done"] is False and piece["model"] == "tutor+shout" for piece in pieces)
    whole = daemon.chat("tutor+shout", QUESTION, options={"num_predict": 8, **EXACT})
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert last["message"] == {"role": "assistant", "content": ""} and last["done"] is True
    for final in (last, whole):
        assert final["done_reason"] in ("stop", "length")
        assert final["eval_count"] and final["prompt_eval_count"]
        for key in ("total_duration", "eval_duration", "prompt_eval_duration"):
            assert isinstance(final[key], int) and final[key] > 0


def test_generate(daemon: Daemon) -> None:
    body = {"model": "plain", "prompt": "1 2 3 4", "raw": True, "options": {"num_predict": 4, **EXACT}}
    response = daemon.post("/api/generate", body)
    assert response.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(response)
    whole = daemon.post("/api/generate", {**body, "stream": False}).json()
    assert "".join(str(piece["response"]) for piece in pieces) == whole["response"] != ""
    assert (last["done_reason"], whole["done_reason"], whole["eval_count"]) == ("length", "length", 4)


def test_the_prompt_can_be_seen(daemon: Daemon) -> None:
    body = {"model": "plain", "prompt": "hello", "system": "Be brief.", "_debug_render_only": True}
    rendered = daemon.post("/api/generate", body).json()["_debug_info"]["rendered_template"]
    assert rendered.index("Be brief.") < rendered.index("hello")
    raw = daemon.post("/api/generate", {**body, "system": None, "raw": True}).json()
    assert raw["_debug_info"]["rendered_template"] == "hello"


def test_logprobs(daemon: Daemon) -> None:
    body = {"model": "plain", "prompt": "1 2 3", "raw": True, "stream": False, "options": {"num_predict": 2}}
    reply = daemon.post("/api/generate", {**body, "logprobs": True, "top_logprobs": 3}).json()
    first, _ = reply["logprobs"]
    assert first["logprob"] == max(top["logprob"] for top in first["top_logprobs"])
    assert len(first["top_logprobs"]) == 3


def test_json_format(daemon: Daemon) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Madrid", "Rome"]}}, "required": ["city"]}
    answer = json.loads(daemon.say("plain", QUESTION, format=schema))
    assert answer["city"] in ("Madrid", "Rome")


def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    for path in ("/api/generate", "/api/chat"):
        loaded = daemon.post(path, {"model": "plain", "keep_alive": -1})
        assert (loaded.json()["done"], loaded.json()["done_reason"]) == (True, "load")
        (shown,) = daemon.ps()
        assert shown["name"] == "plain:latest" and shown["expires_at"] > "2200"
        assert daemon.post(path, {"model": "plain", "keep_alive": 0}).json()["done_reason"] == "unload"
        assert daemon.ps() == [] and gone(shown["runner_pid"])


def test_killing_the_runner_ends_the_stream_with_one_error_line(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    body = {"model": "plain", "prompt": "Count: 1 2 3 4 5 6", "raw": True, "options": ENDLESS}
    for path, extra in (("/api/generate", {}), ("/v1/completions", {"stream": True, "max_tokens": 900})):
        with daemon.post(path, {**body, **extra}, stream=True) as response:
            pieces = response.iter_lines()
            assert next(pieces)
            pid = daemon.ps()[0]["runner_pid"]
            os.kill(pid, signal.SIGKILL)
            rest = [line.removeprefix(b"data: ") for line in pieces if line]
        error = json.loads(rest[-1])["error"]
        assert "the runner of plain:latest stopped (signal 9, SIGKILL)" in (error["message"] if extra else error)
        assert not any(b'"done":true' in line or b"[DONE]" in line for line in rest)
    assert daemon.say("plain", "Hello", options={"num_predict": 2})
    assert daemon.ps()[0]["load_count"] == 3


def test_killing_the_daemon_leaves_no_runner(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    body = {"model": "plain", "prompt": "Tell me a story.", "options": ENDLESS}
    with daemon.post("/api/generate", body, stream=True) as response:
        pieces = response.iter_lines()  # dropped, it would close the connection
        assert next(pieces)
        pid = daemon.ps()[0]["runner_pid"]
        daemon.process.kill()
        assert eventually(lambda: gone(pid))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(daemon: Daemon, stream: bool) -> None:
    body = {"model": "plain", "prompt": "Tell me a long story.", "stream": stream, "options": ENDLESS}
    data = json.dumps(body).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(head.encode() + data)
        assert eventually(lambda: in_flight(daemon) == 1)
        if stream:
            connection.recv(100)
    assert eventually(lambda: in_flight(daemon) == 0)


def test_a_full_queue_is_503_in_the_dialect_of_the_path(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon(MODELCTL_NUM_PARALLEL="1", MODELCTL_MAX_QUEUE="1")
    body = {"model": "plain", "prompt": "Tell me a story.", "options": ENDLESS}
    with ThreadPoolExecutor() as pool, daemon.post("/api/generate", body, stream=True):
        waiting = pool.submit(daemon.post, "/api/generate", {**body, "stream": False, "options": {"num_predict": 1}})
        assert eventually(lambda: in_flight(daemon) == 2)
        refused = daemon.post("/api/generate", body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"].startswith("server busy")
        assert "busy" in daemon.post("/v1/completions", body).json()["error"]["message"]
        assert daemon.get("/api/version").ok
    assert waiting.result().status_code == 200


def test_sigterm_lets_answers_finish(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    body = {"model": "plain", "prompt": "1 2 3", "raw": True, "options": {"num_predict": 5}}
    with daemon.post("/api/generate", body, stream=True) as response:
        pieces = response.iter_lines()
        assert next(pieces)
        pid = daemon.ps()[0]["runner_pid"]
        daemon.process.send_signal(signal.SIGTERM)
        assert json.loads(list(pieces)[-1])["done"] is True
    assert daemon.process.wait(timeout=120) == 0
    assert gone(pid)


def test_sigterm_twice_ends_at_once_and_leaves_nothing(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    body = {"model": "plain", "prompt": "Tell me a story.", "options": ENDLESS}
    with daemon.post("/api/generate", body, stream=True) as response:
        pieces = response.iter_lines()
        assert next(pieces)
        pid = daemon.ps()[0]["runner_pid"]
        for _ in range(2):
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert "was stopped" in json.loads(list(pieces)[-1])["error"]
        assert daemon.process.wait(timeout=120) == 0
    assert gone(pid)


def test_many_first_requests_load_once(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: daemon.post("/api/generate", {"model": "plain"}), range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert daemon.ps()[0]["load_count"] == 1


def test_the_ollama_client(daemon: Daemon) -> None:
    client = ollama.Client(daemon.url)
    options = {"num_predict": 30, **EXACT}
    whole = client.chat("tutor+pirate", HISTORY, options=options)
    streamed = list(client.chat("tutor+pirate", HISTORY, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in streamed) == whole.message.content
    assert whole.message.content and "Arr" in whole.message.content
    assert streamed[-1].done_reason == "stop" and streamed[-1].eval_count
    assert client.generate("plain", "hello", options={"num_predict": 2}).response
    assert {model.model for model in client.list().models} >= {"tutor:latest", "plain:latest"}
    shown = client.show("tutor")
    assert shown.details and shown.details.family == "llama"
    assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
    assert any(model.model == "tutor:latest" for model in client.ps().models)
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("nobody", HISTORY)
    assert caught.value.status_code == 404
    client.copy("plain", "copied")
    client.delete("copied")
    with pytest.raises(ollama.ResponseError):
        client.show("copied")


def test_the_openai_client(daemon: Daemon) -> None:
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none")
    asked = {"model": "tutor+shout", "messages": HISTORY, "max_tokens": 20, "temperature": 0, "extra_body": EXACT}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert whole.choices[0].message.content.startswith("THE CAPITAL OF")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and chunks[-1].choices == []
    assert chunks[0].choices[0].delta.role == "assistant"
    completion = client.completions.create(model="plain", prompt="hello", max_tokens=2, temperature=0, logprobs=2)
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].logprobs and len(completion.choices[0].logprobs.tokens or []) == 2
    assert {model.id for model in client.models.list()} >= {"tutor:latest"}
    assert client.models.retrieve("tutor+json=0.5").id == "tutor+json=0.5"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="too short"):
        client.chat.completions.create(model="plain", messages=[])


def test_openai_json_mode(daemon: Daemon) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    body = {"model": "plain", "messages": HISTORY, "response_format": schema, "max_completion_tokens": 10}
    choice = daemon.post("/v1/chat/completions", body).json()["choices"][0]
    assert json.loads(choice["message"]["content"]) in ("yes", "no")


def test_the_log_holds_no_prompts(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    daemon.chat("plain", "Xylophone-4711 is a secret.", options={"num_predict": 1})
    daemon.post("/api/chat", {"model": "Xylophone-4711", "messages": HISTORY})
    assert daemon.stop() == 0
    assert "Xylophone-4711" not in daemon.log
