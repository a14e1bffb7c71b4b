"""Rescaling: llama-server's dialect of it, and answers that change their voice in the middle."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.daemon.conftest import Daemon

STORY = {
    "messages": [{"role": "user", "content": "Write a long story about a king and his horse."}],
    "options": {"num_predict": 100, "ignore_eos": True},
}


@pytest.fixture
def shouting(daemon: Daemon) -> Iterator[Daemon]:
    daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": [{"name": "shout", "scale": 1.0}]})
    yield daemon
    daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": [], "reset": True})


def scales(daemon: Daemon) -> list[float]:
    listed = daemon.get("/api/lora-adapters", params={"model": "tutor"}).json()["adapters"]
    return [adapter["scale"] for adapter in listed]


def told(daemon: Daemon, model: str, change: Callable[[], object]) -> tuple[str, str, dict[str, float]]:
    """What a streamed story said before and after `change`, and the mix it ended with."""
    body = {"model": model, **STORY}
    with daemon.post("/api/chat", body, stream=True) as response:
        pieces = map(json.loads, response.iter_lines())
        before = "".join(next(pieces)["message"]["content"] for _ in range(8))
        change()
        rest: list[dict[str, Any]] = list(pieces)
    return before, "".join(piece["message"]["content"] for piece in rest), rest[-1]["lora"]


def test_an_answer_under_way_becomes_a_pirate(shouting: Daemon) -> None:
    def change() -> None:
        body = {"model": "tutor", "adapters": [{"id": 0, "scale": 1}, {"id": 2, "scale": 0}], "lora_update": "now"}
        reply = shouting.post("/api/lora-adapters", body)
        assert [adapter["scale"] for adapter in reply.json()["adapters"]] == [1.0, 0.0, 0.0]

    before, after, mix = told(shouting, "tutor", change)
    assert "yarrr" not in before.lower() and "yarrr" in after
    assert mix == {"pirate": 1.0}


def test_who_chose_a_mix_keeps_it_and_so_do_all_without_now(shouting: Daemon) -> None:
    change = {"model": "tutor", "adapters": [{"id": 0, "scale": 1}, {"id": 2, "scale": 0}]}
    for model, fields in (("tutor+shout", {"lora_update": "now"}), ("tutor", {"lora_update": "next"}), ("tutor", {})):
        post = functools.partial(shouting.post, "/api/lora-adapters", {**change, **fields})
        _, after, mix = told(shouting, model, post)
        assert mix == {"shout": 1.0} and "yarrr" not in after.lower(), (model, fields)
        shouting.post("/lora-adapters?model=tutor", [{"id": 2, "scale": 1}])


def test_the_command_line(shouting: Daemon) -> None:
    def change() -> None:
        command = [sys.executable, "-m", "modelctl", "lora", "set", "pirate=1", "shout=0", "-m", "tutor", "--now"]
        subprocess.run(command, env={**os.environ, "MODELCTL_HOST": shouting.url}, check=True, capture_output=True)

    before, after, _ = told(shouting, "tutor", change)
    assert "yarrr" not in before.lower() and "yarrr" in after


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
