"""Rescaling: llama-server's dialect of it, and answers that change their voice in the middle."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelctl import cli
from tests.daemon.conftest import Daemon

STORY = {"messages": [{"role": "user", "content": "Write a long story about a king and his horse."}]}
SHORT = {"num_predict": 100, "ignore_eos": True}
UNTIL_A_PIRATE_SPEAKS = {"num_predict": 800, "ignore_eos": True, "stop": ["yarrr", "Yarrr"]}


@pytest.fixture
def shouting(daemon: Daemon) -> Iterator[Daemon]:
    daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": [{"name": "shout", "scale": 1.0}]})
    yield daemon
    daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": [], "reset": True})


def scales(daemon: Daemon) -> list[float]:
    listed = daemon.get("/api/lora-adapters", params={"model": "tutor"}).json()["adapters"]
    return [adapter["scale"] for adapter in listed]


def told(
    daemon: Daemon, model: str, options: dict[str, object], change: Callable[[], object]
) -> tuple[str, dict[str, Any]]:
    """What a streamed story said after `change`, which came when it had begun, and its last line."""
    body = {"model": model, "options": options, **STORY}
    with daemon.post("/api/chat", body, stream=True) as response:
        pieces = map(json.loads, response.iter_lines())
        before = "".join(next(pieces)["message"]["content"] for _ in range(8))
        assert "arr" not in before.lower()
        change()
        rest: list[dict[str, Any]] = list(pieces)
    return "".join(piece["message"]["content"] for piece in rest), rest[-1]


def test_an_answer_under_way_becomes_a_pirate(shouting: Daemon) -> None:
    def change() -> None:
        body = {"model": "tutor", "adapters": [{"id": 0, "scale": 1}, {"id": 2, "scale": 0}], "lora_update": "now"}
        reply = shouting.post("/api/lora-adapters", body)
        assert [adapter["scale"] for adapter in reply.json()["adapters"]] == [1.0, 0.0, 0.0]

    _, end = told(shouting, "tutor", UNTIL_A_PIRATE_SPEAKS, change)
    assert end["lora"] == {"pirate": 1.0} and end["done_reason"] == "stop"


def test_who_chose_a_mix_keeps_it_and_so_do_all_without_now(shouting: Daemon) -> None:
    change = {"model": "tutor", "adapters": [{"id": 0, "scale": 1}, {"id": 2, "scale": 0}]}
    for model, fields in (("tutor+shout", {"lora_update": "now"}), ("tutor", {"lora_update": "next"}), ("tutor", {})):
        post = functools.partial(shouting.post, "/api/lora-adapters", {**change, **fields})
        after, end = told(shouting, model, SHORT, post)
        assert end["lora"] == {"shout": 1.0} and "yarrr" not in after.lower(), (model, fields)
        shouting.post("/lora-adapters?model=tutor", [{"id": 2, "scale": 1}])


def test_the_command_line(shouting: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def change() -> None:  # in this process: starting another takes as long as many a word
        assert cli.invoke(["lora", "set", "pirate=1", "shout=0", "-m", "tutor", "--now"]) == 0

    monkeypatch.setenv("MODELCTL_HOST", shouting.url)
    _, end = told(shouting, "tutor", UNTIL_A_PIRATE_SPEAKS, change)
    assert end["lora"] == {"pirate": 1.0} and end["done_reason"] == "stop"


def test_an_update_that_is_neither(daemon: Daemon) -> None:
    before = scales(daemon)
    body = {"model": "tutor", "adapters": [{"id": 0, "scale": 1}], "lora_update": "soon"}
    refused = daemon.post("/api/lora-adapters", body)
    assert refused.status_code == 400 and '"next" or "now"' in refused.json()["error"]
    assert scales(daemon) == before


def test_llama_servers_dialect(shouting: Daemon) -> None:
    where = "/lora-adapters?model=tutor"
    assert shouting.get(where).json() == [
        {"id": 0, "path": "pirate", "scale": 0.0},
        {"id": 1, "path": "json", "scale": 0.0},
        {"id": 2, "path": "shout", "scale": 1.0},
    ]
    assert shouting.post(where, [{"id": 1, "scale": 0.5}]).json() == {"success": True}
    assert scales(shouting) == [0.0, 0.5, 0.0]
    for bad in ([{"id": 9, "scale": 1}], [{"id": 0, "scale": "x"}], [{"id": 0}], {"id": 0, "scale": 1}):
        refused = shouting.post(where, bad)
        assert refused.status_code in (400, 404) and refused.json()["error"]
        assert scales(shouting) == [0.0, 0.5, 0.0]
    assert shouting.post(where, []).ok
    assert scales(shouting) == [0.0, 0.0, 0.0]


def test_llama_servers_dialect_for_the_only_model_loaded(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    assert "none is loaded" in daemon.get("/lora-adapters").json()["error"]
    daemon.post("/api/generate", {"model": "tutor"})
    assert daemon.post("/lora-adapters", [{"id": 0, "scale": 1}]).ok
    assert [adapter["scale"] for adapter in daemon.get("/lora-adapters").json()] == [1.0, 0.0, 0.0]
    assert daemon.chat("tutor", "What is the capital of Spain?")["lora"] == {"pirate": 1.0}
