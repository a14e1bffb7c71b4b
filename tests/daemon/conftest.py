"""A real daemon on a free port, with the real base and adapters in its store."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from modelctl import parser
from modelctl.create import create
from modelctl.store import Store

# One thread: with several, tests on a busy machine spend their time at llama.cpp's barriers.
PARAMETERS = """
PARAMETER temperature 0
PARAMETER num_ctx 1024
PARAMETER num_thread 1
"""
MODELFILE = f"""\
FROM {{base}}
ADAPTER {{pirate}} AS pirate
ADAPTER {{json}} AS json
ADAPTER {{shout}} AS shout
{PARAMETERS}"""


# For answers that something happens to: no machine is so fast, or so busy, that they end first.
ENDLESS = {"num_predict": 100_000, "ignore_eos": True}


class Quiet:
    def status(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def progress(self, label: str, done: int, total: int) -> None:
        pass


def make(home: Path, name: str, text: str) -> None:
    create(Store(home / "store"), name, parser.parse(text), home, Quiet())


@pytest.fixture(scope="session")
def stocked(base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODELCTL_HOME with `tutor` (three adapters) and `plain` (the base alone)."""
    home = tmp_path_factory.mktemp("stocked")
    make(home, "tutor", MODELFILE.format(base=base, **adapters))
    make(home, "plain", f"FROM {base}{PARAMETERS}")
    return home


class Daemon:
    """`daemon.serve` in a process of its own, its log, and the calls that tests make."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.log_path = home / f"daemon-{time.monotonic_ns()}.log"
        env = {**os.environ, "MODELCTL_HOME": str(home), "MODELCTL_HOST": "127.0.0.1:0", **environment}
        code = "import sys; from modelctl import config, daemon; sys.exit(daemon.serve(config.load()))"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=log, stdout=log)
        self.port = self._port()
        self.url = f"http://127.0.0.1:{self.port}"

    def _port(self) -> int:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"port (\d+)", self.log):
                return int(found[1])
            time.sleep(0.02)
        raise AssertionError(f"no daemon: {self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=120, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=120, **options)

    def ps(self) -> list[dict[str, Any]]:
        return list(self.get("/api/ps").json()["models"])

    def chat(self, model: str, text: str, **fields: Any) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False, **fields}
        response = self.post("/api/chat", body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def say(self, model: str, text: str, **fields: Any) -> str:
        return str(self.chat(model, text, **fields)["message"]["content"])

    def raw(self, data: bytes) -> bytes:
        """What comes back for bytes that no client would send, until the daemon hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@pytest.fixture(scope="session")
def daemon(stocked: Path) -> Iterator[Daemon]:
    """Shared: tests leave its mixes as they found them, or use models of their own."""
    running = Daemon(stocked)
    yield running
    assert running.process.poll() is None, f"the daemon died: {running.log}"
    assert running.stop() == 0


@pytest.fixture
def own_daemon(stocked: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons that a test may kill."""
    started: list[Daemon] = []

    def start(**environment: str) -> Daemon:
        started.append(Daemon(stocked, **environment))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
