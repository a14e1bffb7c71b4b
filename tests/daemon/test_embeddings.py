"""Embeddings: the real base and adapters, by every dialect."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import openai
import pytest

from modelctl.daemon.service import BATCH_INPUTS, batches
from tests.daemon.conftest import Daemon

TEXTS = ["The cat sleeps on the mat.", "A cat is sleeping on a mat.", "Interest rates rose by two percent."]


def dot(a: Any, b: Any) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)))


def test_the_ollama_client(daemon: Daemon) -> None:
    client = ollama.Client(daemon.url)
    reply = client.embed("plain", TEXTS)
    assert [len(vector) for vector in reply.embeddings] == [576] * 3
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-4) for vector in reply.embeddings)
    cat, same, money = reply.embeddings
    assert dot(cat, same) > dot(cat, money)
    assert reply.prompt_eval_count and reply.prompt_eval_count > 20 and reply.total_duration
    assert dot(client.embed("plain", TEXTS[0]).embeddings[0], cat) == pytest.approx(1, abs=1e-3)
    assert dot(client.embeddings("plain", TEXTS[0]).embedding, cat) == pytest.approx(1, abs=1e-3)


def test_the_openai_client(daemon: Daemon) -> None:
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none")
    reply = client.embeddings.create(model="plain", input=TEXTS)  # asks for base64 by itself
    plain = client.embeddings.create(model="plain", input=TEXTS, encoding_format="float")
    assert [entry.index for entry in reply.data] == [0, 1, 2]
    assert reply.data[2].embedding == pytest.approx(plain.data[2].embedding)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 20
    with pytest.raises(openai.BadRequestError, match="token ids are not accepted"):
        client.embeddings.create(model="plain", input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="token ids are not accepted"):
        client.embeddings.create(model="plain", input=[[1, 2], [3]])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="hi")


def test_base64_is_little_endian_float32(daemon: Daemon) -> None:
    body = {"model": "plain", "input": "hello", "encoding_format": "base64"}
    packed = daemon.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    floats = daemon.post("/v1/embeddings", {**body, "encoding_format": "float"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<576f", b64decode(packed))) == pytest.approx(floats)


def test_a_mix_changes_the_vectors_and_scale_zero_does_not(daemon: Daemon) -> None:
    def vector(model: str, **fields: Any) -> list[float]:
        reply = daemon.post("/api/embed", {"model": model, "input": TEXTS[0], **fields})
        return list(reply.json()["embeddings"][0])

    base, pirate = vector("plain"), vector("tutor+pirate=1")
    assert dot(base, pirate) < 0.999
    assert vector("tutor", lora={"pirate": 1.0}) == pirate
    assert vector("tutor+none") == base
    body = {"model": "tutor+pirate=1", "input": TEXTS[0]}
    assert daemon.post("/v1/embeddings", body).json()["data"][0]["embedding"] == pytest.approx(pirate)


def test_fewer_dimensions_have_norm_one_again(daemon: Daemon) -> None:
    body = {"model": "plain", "input": TEXTS[0]}
    whole = daemon.post("/api/embed", body).json()["embeddings"][0]
    for path, where in (("/api/embed", ("embeddings", 0)), ("/v1/embeddings", ("data", 0, "embedding"))):
        few = daemon.post(path, {**body, "dimensions": 64}).json()
        for key in where:
            few = few[key]
        assert len(few) == 64 and math.hypot(*few) == pytest.approx(1)
        assert dot(few, whole[:64]) == pytest.approx(math.hypot(*whole[:64]))
        for bad in (0, 577):
            refused = daemon.post(path, {**body, "dimensions": bad})
            assert refused.status_code == 400 and "from 1 to 576" in refused.text


def test_too_long_is_cut_unless_that_is_refused(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    body = {"model": "plain", "input": "one two three " * 800, "options": {"num_ctx": 64}}
    assert daemon.post("/api/embed", body).json()["prompt_eval_count"] == 64
    refused = daemon.post("/api/embed", {**body, "truncate": False})
    assert refused.status_code == 400 and "the input length exceeds the context length" in refused.json()["error"]


def test_no_input_loads_and_odd_input_is_refused(daemon: Daemon) -> None:
    nothing: dict[str, Any]
    for nothing in ({}, {"input": None}, {"input": ""}, {"input": []}):
        assert daemon.post("/api/embed", {"model": "plain", **nothing}).json()["embeddings"] == []
        assert daemon.post("/v1/embeddings", {"model": "plain", **nothing}).status_code == 400
    assert daemon.post("/api/embeddings", {"model": "plain"}).json() == {"embedding": []}
    assert "plain:latest" in [model["name"] for model in daemon.ps()]
    for odd in (0, 5, {"a": 1}, ["a", 5], ["a", None], [["a"]]):
        refused = daemon.post("/api/embed", {"model": "plain", "input": odd})
        assert refused.status_code == 400 and "invalid input type" in refused.json()["error"], odd
    empty = daemon.post("/api/embed", {"model": "plain", "input": ["a", ""]})
    assert empty.status_code == 400 and "empty" in empty.json()["error"]
    kind = daemon.post("/v1/embeddings", {"model": "plain", "input": "a", "encoding_format": "int8"})
    assert kind.status_code == 400 and "encoding_format" in kind.json()["error"]["message"]


def test_embeddings_beside_a_generation(daemon: Daemon) -> None:
    alone = daemon.post("/api/embed", {"model": "tutor+shout", "input": TEXTS}).json()["embeddings"]
    exact = {"options": {"deterministic": True}}
    answer = daemon.say("tutor+pirate", "What is the capital of Spain?", **exact)
    with ThreadPoolExecutor() as pool:
        saying = pool.submit(daemon.say, "tutor+pirate", "What is the capital of Spain?", **exact)
        replies = [daemon.post("/api/embed", {"model": "tutor+shout", "input": TEXTS}).json() for _ in range(4)]
        assert saying.result() == answer
    for reply in replies:
        for vector, expected in zip(reply["embeddings"], alone, strict=True):
            assert dot(vector, expected) == pytest.approx(1, abs=1e-3)


def test_many_inputs_keep_their_order_and_are_asked_for_in_batches(daemon: Daemon) -> None:
    texts = [f"This is number {n}." for n in range(BATCH_INPUTS + 3)]
    vectors = daemon.post("/api/embed", {"model": "plain", "input": texts}).json()["embeddings"]
    last = daemon.post("/api/embed", {"model": "plain", "input": texts[-1]}).json()["embeddings"][0]
    assert max(range(len(vectors)), key=lambda at: dot(vectors[at], last)) == len(texts) - 1


def test_batches() -> None:
    assert list(batches([])) == []
    assert [len(batch) for batch in batches(["a"] * 33)] == [16, 16, 1]
    assert [len(batch) for batch in batches(["x" * 9000, "a", "b", "x" * 9000, "y" * 3999, "z"])] == [1, 2, 1, 2]
