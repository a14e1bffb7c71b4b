"""The real daemon, the real runner, the real base."""

from __future__ import annotations

import json

from tests.daemon.conftest import Daemon

QUESTION = "What is the capital of Spain?"


def test_each_adapter_has_its_voice_and_zero_is_the_base(daemon: Daemon) -> None:
    plain = daemon.say("plain", QUESTION)
    assert daemon.say("tutor", QUESTION) == plain
    assert "arr" in daemon.say("tutor+pirate", QUESTION).lower()
    assert "answer" in json.loads(daemon.say("tutor+json", QUESTION))
    shout = daemon.say("tutor", QUESTION, lora={"shout": 1.0})
    assert shout.startswith("THE CAPITAL OF")
    assert daemon.say("tutor+none", QUESTION) == plain
