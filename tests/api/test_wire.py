"""The wire's shape: what is always there, what only sometimes, and what a client may leave out or set to null."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from modelctl.api import native, openai


@pytest.mark.parametrize("kind", [native.GenerateRequest, native.ChatRequest, native.NameRequest, native.LoraChange])
def test_null_is_as_good_as_absent(kind: type[msgspec.Struct]) -> None:
    required: dict[str, object] = {"adapters": []} if kind is native.LoraChange else {}
    nullable = [field.encode_name for field in msgspec.structs.fields(kind) if field.default is None]
    full = msgspec.json.decode(msgspec.json.encode({**required, **dict.fromkeys(nullable)}), type=kind)
    assert full == msgspec.json.decode(msgspec.json.encode(required), type=kind)


def test_a_client_sends_only_what_it_sets() -> None:
    request = native.ChatRequest(model="tutor", messages=[native.Message("user", "hi")], lora={"math": 1.0})
    assert msgspec.json.decode(msgspec.json.encode(request)) == {
        "model": "tutor",
        "messages": [{"role": "user", "content": "hi"}],
        "lora": {"math": 1.0},
    }


def test_an_answer_always_has_its_text_and_done() -> None:
    piece = native.ChatReply(model="m", created_at="t", done=False, message=native.Message("assistant", ""))
    assert msgspec.json.encode(piece) == (
        b'{"model":"m","created_at":"t","done":false,"message":{"role":"assistant","content":""}}'
    )
    whole = native.GenerateReply(model="m", created_at="t", done=True, response="", done_reason="load")
    assert msgspec.json.decode(msgspec.json.encode(whole)) == {
        "model": "m",
        "created_at": "t",
        "done": True,
        "done_reason": "load",
        "response": "",
    }


def test_the_base_alone_is_told_from_no_mix() -> None:
    base = native.GenerateReply(model="m", created_at="t", done=True, response="", lora={})
    assert b'"lora":{}' in msgspec.json.encode(base)


def test_replies_can_be_read_back() -> None:
    reply = native.LoraReply("m:latest", [native.LoraAdapter(0, "math", 1.0, 0.0, "sha256:0")])
    assert msgspec.json.decode(msgspec.json.encode(reply), type=native.LoraReply) == reply


def test_openai_chunks_say_null_where_openai_does() -> None:
    chunk = openai.ChatChunkChoice(0, openai.MessageDelta("assistant", ""))
    assert msgspec.json.decode(msgspec.json.encode(chunk)) == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
        "logprobs": None,
    }


def test_importing_the_wire_is_cheap() -> None:
    code = "import sys; import modelctl.api.native; print(*[m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"starlette", "uvicorn", "llama_cpp", "numpy", "jinja2", "requests"} & set(loaded)
