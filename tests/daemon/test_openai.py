"""What OpenAI's clients can ask beyond a plain answer: several at once, biases, seeds, formats; and llama-server's
tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.daemon.conftest import Daemon

QUESTION = "What is the capital of Spain?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
WARM: dict[str, Any] = {**CHAT, "model": "plain", "temperature": 1.5, "seed": 7}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as made:
        yield made


def texts(reply: Any) -> list[str]:
    return [choice.message.content for choice in reply.choices]


def test_n_answers_have_n_seeds(client: openai.OpenAI) -> None:
    asked = {**WARM, "extra_body": {"deterministic": True}}
    three = client.chat.completions.create(**asked, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    singles = [client.chat.completions.create(**{**asked, "seed": 7 + i}) for i in range(3)]
    assert texts(three) == [texts(single)[0] for single in singles]
    assert len(set(texts(three))) == 3
    assert three.usage.completion_tokens == sum(single.usage.completion_tokens for single in singles)
    assert three.usage.prompt_tokens == singles[0].usage.prompt_tokens


def test_n_answers_in_one_stream(client: openai.OpenAI) -> None:
    asked = {**WARM, "extra_body": {"deterministic": True}, "n": 3}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    whole = client.chat.completions.create(**asked)
    said, ends, roles = ["", "", ""], [], []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        said[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
        roles += [choice.index] if choice.delta.role else []
    assert said == texts(whole)
    assert sorted(ends) == sorted(roles) == [0, 1, 2]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_prompt_of_n_answers_is_computed_once(daemon: Daemon) -> None:
    filler = "The quick brown fox jumps over the lazy dog. " * 20
    body = {"model": "plain", "prompt": f"{filler} Say something else.", "n": 4, "max_tokens": 2}
    before = _rows(daemon)
    usage = daemon.post("/v1/completions", body).json()["usage"]
    assert usage["prompt_tokens"] > 200
    assert _rows(daemon) - before < 2 * usage["prompt_tokens"]


def _rows(daemon: Daemon) -> float:
    text = daemon.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelctl_rows_total"))


def test_completions_with_n(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="plain", prompt="1 2 3", n=2, best_of=2, max_tokens=3, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [((choice.logprobs and choice.logprobs.text_offset) or [-1])[0] for choice in reply.choices] == [0, 0]
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="plain", prompt="1 2 3", n=2, best_of=5)
    with pytest.raises(openai.BadRequestError, match="n must be from 1 to 8"):
        client.completions.create(model="plain", prompt="1 2 3", n=9)


def test_logit_bias(daemon: Daemon, client: openai.OpenAI) -> None:
    (token,) = daemon.post("/tokenize", {"model": "plain", "content": " banana"}).json()["tokens"]
    asked = {**CHAT, "model": "plain", "temperature": 0, "max_tokens": 3}
    plain = texts(client.chat.completions.create(**asked))
    assert texts(client.chat.completions.create(**asked, logit_bias={str(token): 100})) == [" banana" * 3]
    (first, *_) = daemon.post("/tokenize", {"model": "plain", "content": plain[0]}).json()["tokens"]
    assert texts(client.chat.completions.create(**asked, logit_bias={str(first): -100})) != plain
    with pytest.raises(openai.BadRequestError, match="there is no token 999999"):
        client.chat.completions.create(**asked, logit_bias={"999999": 1})


def test_formats(client: openai.OpenAI) -> None:
    asked = {**CHAT, "model": "plain", "temperature": 0, "max_tokens": 60}
    any_json = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert texts(any_json)[0].lstrip().startswith("{")
    schema = {"type": "object", "properties": {"city": {"enum": ["Madrid", "Rome"]}}, "required": ["city"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = json.loads(texts(client.chat.completions.create(**asked, response_format=wanted))[0])
    assert answer["city"] in ("Madrid", "Rome")
    plain = client.chat.completions.create(**{**asked, "response_format": {"type": "text"}, "max_tokens": 2})
    assert plain.choices[0].finish_reason == "length"


def test_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**{**WARM, "max_completion_tokens": 3})
    assert reply.usage.completion_tokens <= 3 and reply.choices[0].finish_reason == "length"


def test_a_developer_message_is_a_system_message(client: openai.OpenAI) -> None:
    """OpenAI's newer clients send `developer`, which no local model's template knows."""

    def ask(role: str) -> Any:
        messages: list[Any] = [{"role": role, "content": "You are a pirate."}, *CHAT["messages"]]
        asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "extra_body": {"deterministic": True}}
        return client.chat.completions.create(model="plain", messages=messages, **asked)

    developer, system, user = map(ask, ("developer", "system", "user"))
    assert texts(developer) == texts(system)
    assert developer.usage.prompt_tokens == system.usage.prompt_tokens != user.usage.prompt_tokens


def test_deterministic_is_the_same_in_any_company(daemon: Daemon, client: openai.OpenAI) -> None:
    options = {"temperature": 1.5, "seed": 11, "num_predict": 12, "deterministic": True}

    def say(model: str, text: str = QUESTION) -> str:
        return daemon.say(model, text, options=options)

    alone = say("tutor+shout")
    with ThreadPoolExecutor() as pool:
        noise = [pool.submit(say, "tutor+pirate", f"Tell me about {n}.") for n in range(2)]
        crowd = [pool.submit(daemon.say, "plain", f"Count to {n}.", options={"num_predict": 12}) for n in range(2)]
        again = pool.submit(say, "tutor+shout")
        assert again.result() == alone
        assert all(other.result() for other in (*noise, *crowd))
    body = {**WARM, "model": "tutor+shout", "temperature": 1.5, "seed": 11, "max_tokens": 12, "top_p": 0.9}
    theirs = client.chat.completions.create(**body, extra_body={"deterministic": True})
    assert texts(theirs) == [alone]


def test_loaded_adapters_can_be_picked_from_the_list(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none")
    assert sorted(model.id for model in client.models.list()) == ["plain:latest", "tutor:latest"]
    daemon.post("/api/generate", {"model": "tutor"})
    cards = {model.id: model for model in client.models.list()}
    assert set(cards) == {"plain:latest", "tutor:latest", "tutor+pirate", "tutor+json", "tutor+shout"}
    shout = cards["tutor+shout"]
    assert shout.parent == "tutor:latest" and shout.root.startswith("sha256:")  # type: ignore[attr-defined]
    reply = client.chat.completions.create(**CHAT, model=shout.id, temperature=0)
    assert texts(reply)[0].startswith("THE CAPITAL OF")


def test_tokens(daemon: Daemon) -> None:
    def tokens(content: str, **fields: Any) -> list[int]:
        reply = daemon.post("/tokenize", {"model": "plain", "content": content, **fields})
        assert reply.status_code == 200, reply.text
        return list(reply.json()["tokens"])

    def text(ids: list[int]) -> str:
        return str(daemon.post("/detokenize", {"model": "plain", "tokens": ids}).json()["content"])

    for content in ("Hello, world!", "žluťoučký kůň 🐎", "<|im_start|>user\n", ""):
        assert text(tokens(content)) == content
    assert len(tokens("<|im_start|>")) == 1 < len(tokens("<|im_start|>", parse_special=False))
    assert text(tokens("<|im_start|>", parse_special=False)) == "<|im_start|>"
    assert tokens("hi", add_special=True)[-1:] == tokens("hi")
    for path, body, says in (
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces"),
        ("/detokenize", {"tokens": [10**6]}, "there is no token 1000000"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**40]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [0] * 200_000}, "tokens"),
    ):
        refused = daemon.post(path, {"model": "plain", **body})
        assert refused.status_code == 400 and says in refused.json()["error"], (path, body)
