"""The daemon that commands start by themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelctl import config
from modelctl.cli import background
from modelctl.client import Client
from tests.cli.conftest import Cli, Done, free_port, in_process_of_its_own


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Iterator[int]:
    """A free one; whatever daemon came up there is stopped."""
    port = free_port()
    monkeypatch.setenv("MODELCTL_HOST", f"127.0.0.1:{port}")
    yield port
    background.stop(config.load())


def pid() -> int | None:
    return background.running_pid(config.load())


def test_ps_starts_a_daemon_which_outlives_it_and_stop_ends_it(port: int, cli: Cli) -> None:
    assert pid() is None
    assert in_process_of_its_own("ps", "--json").out.strip() == "[]"
    started = pid()
    assert started is not None
    assert in_process_of_its_own("ps").code == 0
    assert pid() == started
    assert os.getpgid(started) != os.getpgid(0)
    assert cli("stop").out == f"stopped the daemon (process {started})\n"
    assert pid() is None
    assert cli("stop").out == "no daemon is running\n"


def test_two_commands_at_once_share_one_daemon(port: int) -> None:
    done: list[Done] = []
    threads = [threading.Thread(target=lambda: done.append(in_process_of_its_own("ps", "--json"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.code for one in done] == [0, 0, 0], done
    assert pid() is not None


def test_a_daemon_that_comes_second_is_ended_before_it_can_come_up(
    port: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("ps").code == 0
    first, settings, spawned = pid(), config.load(), []

    def slow(_: list[str], **rest: Any) -> subprocess.Popen[bytes]:
        spawned.append(Popen(["sleep", "600"], **rest))
        return spawned[0]

    Popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", slow)
    background.start(settings, Client(settings.address))
    assert spawned[0].poll() == -signal.SIGTERM
    assert pid() == first is not None


def test_a_daemon_that_dies_at_once_has_its_last_words_shown(port: int, home: Path, cli: Cli) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))  # and does not listen: nobody answers, and nobody else can
        cli("ps").clear_error("did not start", "daemon.log", "in use")
    assert pid() is None
    assert not (home / f"daemon-{port}.pid").exists(), "only who has the port may say that it is the daemon"


def test_a_bad_setting_is_said_before_a_daemon_is_started(port: int, home: Path, cli: Cli) -> None:
    home.mkdir(parents=True)
    (home / "config.yaml").write_text("num_parallel: many\n")
    cli("ps").clear_error("config.yaml", "num_parallel", code=2)
    assert not (home / "logs").exists()
    (home / "config.yaml").unlink()


def test_a_killed_daemon_is_replaced_by_the_next_command(port: int, cli: Cli) -> None:
    assert cli("ps").code == 0
    first = pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while pid() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cli("ps").code == 0
    second = pid()
    assert second is not None
    assert second != first


def test_a_stale_pid_file_is_never_believed(port: int, home: Path, cli: Cli) -> None:
    home.mkdir(parents=True)
    (home / f"daemon-{port}.pid").write_text(str(os.getpid()))
    assert pid() is None
    assert cli("stop").out == "no daemon is running\n"


def test_a_daemon_of_another_home_is_not_stopped(port: int, home: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("ps").code == 0
    other = in_process_of_its_own("stop", env={"MODELCTL_HOME": str(tmp_path / "other")})
    other.clear_error("was not started from")
    assert pid() is not None


def test_a_second_daemon_on_the_port_leaves_the_first_alone(port: int, cli: Cli) -> None:
    assert cli("ps").code == 0
    first = pid()
    in_process_of_its_own("serve").clear_error("in use")
    assert pid() == first


def test_the_log_is_put_aside_when_it_is_large(port: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LOG_LIMIT", 10)
    log = config.load().log_path
    log.parent.mkdir(parents=True)
    log.write_text("x" * 11)
    assert cli("ps").code == 0
    assert log.with_suffix(".old.log").read_text() == "x" * 11
    assert "listens on" in log.read_text()


def test_commands_on_the_store_start_nothing(port: int, cli: Cli) -> None:
    for args in (["list"], ["--version"], ["info"], ["stop"]):
        assert cli(*args).code == 0
    assert pid() is None
    assert json.loads(cli("info", "--json").out)["daemon_version"] is None
