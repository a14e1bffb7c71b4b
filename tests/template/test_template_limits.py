"""Hostile templates end in a typed error: no hang, no gigabytes, no way out of the sandbox."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hostile
import pytest

from modelctl.errors import ModelctlError
from modelctl.template import Conversation, Message, TemplateLimit, limits, load, time_limit

HERE = Path(__file__).parent
CHAT = Conversation([Message("user", "hi")])
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
NO_CALLS = "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
GO_ENDLESS = "{{ range 99999999 }}{{ end }}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What became of every hostile template in one process that may have 1 GB."""
    pwn = tmp_path_factory.mktemp("pwn") / "pwn"
    command = [sys.executable, str(HERE / "hostile_run.py"), str(pwn), "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not pwn.exists()
    found: dict[str, tuple[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [f"jinja {n}" for n in hostile.JINJA] + [f"go {n}" for n in hostile.GO])
def test_a_hostile_template_is_a_typed_error(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    kind, message = outcomes[name]
    assert kind in ("BadRequest", "TemplateLimit", "GoTemplateError")
    assert "too much memory" not in message  # refused before it was asked for


@pytest.mark.parametrize(("go", "jinja"), [(None, ENDLESS), (None, NO_CALLS), (GO_ENDLESS, None)])
def test_time_is_bounded_in_any_thread(go: str | None, jinja: str | None) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            with time_limit(0.1):
                load(go, gguf_template=jinja).render(CHAT)
        except ModelctlError as error:
            caught.append(error)

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [TemplateLimit, TemplateLimit]


def test_the_signal_bounds_what_no_tick_sees() -> None:
    with pytest.raises(TemplateLimit), time_limit(0.1):
        while True:
            pass


def test_an_exception_swallowed_once_is_raised_again() -> None:
    swallowed = 0
    with pytest.raises(TemplateLimit), time_limit(0.1):
        while swallowed < 2:
            try:
                while True:
                    pass
            except TemplateLimit:
                swallowed += 1
                if swallowed == 2:
                    raise
    assert swallowed == 2


def test_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(5):
        load(None, gguf_template="x").render(CHAT)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_ring_on_the_way_out_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heard in a module that the way out calls, after the time has passed."""

    def ring_late(_which: int, seconds: float, _again: float = 0.0) -> None:
        if seconds == 0:
            signal.raise_signal(signal.SIGALRM)

    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(signal, "setitimer", ring_late)
    with pytest.raises(TemplateLimit) as stopped, time_limit(1e-6):
        while True:
            limits.tick()
    assert stopped.traceback  # and with it every frame it came through
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    limits.tick()


def test_time_limits_nest() -> None:
    with time_limit(60), pytest.raises(TemplateLimit), time_limit(0.05):
        load(GO_ENDLESS, gguf_template=None).render(CHAT)


def test_a_large_conversation_is_no_attack() -> None:
    chat = Conversation([Message("user" if i % 2 == 0 else "assistant", "word " * 1000) for i in range(401)])
    source = (
        "{% set ns = namespace(out='') %}{% for m in messages %}"
        "{% set ns.out = ns.out ~ m.role ~ (m.content|trim) %}{% endfor %}{{ ns.out[:9] }}"
    )
    short = Conversation(chat.messages[:101])
    with time_limit(20):
        assert load(None, gguf_template=source).render(short) == "userword "
        assert len(load(None, gguf_template=None).render(chat)) > 2_000_000
