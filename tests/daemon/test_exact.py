"""The promise of the product: no history of rescales leaves a trace in what a mix answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.daemon.conftest import Daemon

QUESTION = "What is the capital of Spain?"
HISTORY: tuple[dict[str, float], ...] = ({}, {"pirate": 1}, {"json": 1}, {"pirate": 0.5}, {})


def set_scales(daemon: Daemon, scales: dict[str, float]) -> None:
    every = {**dict.fromkeys(("pirate", "json", "shout"), 0.0), **scales}
    adapters = [{"name": name, "scale": scale} for name, scale in every.items()]
    assert daemon.post("/api/lora-adapters", {"model": "tutor", "adapters": adapters}).status_code == 200


def ask(daemon: Daemon) -> tuple[str, list[Any]]:
    """The answer, and the 20 most likely first tokens with their exact log-probabilities."""
    options = {"deterministic": True, "num_predict": 24}
    reply = daemon.chat("tutor", QUESTION, logprobs=True, top_logprobs=20, options=options)
    return reply["message"]["content"], reply["logprobs"][0]["top_logprobs"]


def test_each_answer_in_a_history_equals_a_fresh_daemons(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon()
    answers = []
    for scales in HISTORY:
        set_scales(daemon, scales)
        answers.append(ask(daemon))
    for scales, answer in zip(HISTORY[:4], answers, strict=False):
        fresh = own_daemon()
        set_scales(fresh, scales)
        assert ask(fresh) == answer, f"{scales}, with a warm cache"
    assert answers[4] == answers[0]
    assert len({text for text, _ in answers}) == 4, "each mix has its own voice"
