"""The daemon as the commands see it: reach it, start it when none answers, find it again to stop it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from modelctl.cli import term
from modelctl.client import Client
from modelctl.config import Config
from modelctl.errors import DaemonUnreachable, ModelctlError, UsageError

START_TIMEOUT = 60.0  # seconds; a cold disk makes the first import slow
STOP_TIMEOUT = 20.0
LOG_LIMIT = 10_000_000  # bytes; a longer log is put aside when the next daemon starts


def reach(config: Config) -> Client:
    """A client of a daemon that answers. Starts one in the background if none does and it would be on this machine."""
    client = Client(config.address)
    try:
        client.version()
    except DaemonUnreachable:
        if not config.address.is_local:
            raise
        if config.port == 0:
            raise UsageError("MODELCTL_HOST names port 0, any free one; only `modelctl serve` can use that") from None
        start(config, client)
    return client


def answering(config: Config) -> Client | None:
    """A client of the daemon, or None when none answers. Starts nothing."""
    client = Client(config.address)
    try:
        client.version()
    except DaemonUnreachable:
        return None
    return client


def start(config: Config, client: Client) -> None:
    """Returns when the daemon answers. Raises `ModelctlError` with its last words if it dies instead."""
    begin = _begin_log(config.log_path)
    with config.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelctl", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C and a closed terminal are meant for us, not for the daemon
        )
    with term.waiting("starting the daemon"):
        _await_answer(client, process, config.log_path, begin)
        if running_pid(config) not in (None, process.pid):  # another was faster to the port
            process.terminate()  # or ours might come up yet, once that one has been stopped
            process.wait()


def _await_answer(client: Client, process: subprocess.Popen[bytes], log: Path, begin: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        try:
            client.version()
            return  # perhaps another one that was faster to the port: as good
        except DaemonUnreachable:
            if ended:
                raise _died(log, begin) from None
        time.sleep(0.05)
    raise ModelctlError(f"the daemon does not answer after {START_TIMEOUT:.0f} seconds", hint="see: modelctl logs")


def _died(log: Path, begin: int) -> ModelctlError:
    """With the daemon's own error where it gave one, else with the last lines that it logged."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("Error: "):
            hints = [line.strip() for line in lines[at + 1 :]]
            message = f"the daemon did not start: {lines[at].removeprefix('Error: ')}"
            return ModelctlError(message, hint="; ".join([*hints, f"its log: {log}"]))
    said = "".join(f"\n  {line}" for line in lines[-5:])
    return ModelctlError(f"the daemon did not start; the end of its log {log}:{said}")


def _begin_log(path: Path) -> int:
    """Where this daemon's lines will begin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size <= LOG_LIMIT:
        return size
    path.replace(path.with_suffix(".old.log"))
    return 0


# The daemon holds a lock on this file while it lives, so a stale or recycled pid is never signalled.


def _pid_path(config: Config) -> Path:
    return config.home / f"daemon-{config.port}.pid"


@contextlib.contextmanager
def pid_file(config: Config) -> Iterator[None]:
    """Held by `modelctl serve` from when it has its port. Of daemons that start at once, so only the one that lives
    has the lock."""
    config.home.mkdir(parents=True, exist_ok=True)
    with _pid_path(config).open("a+") as file:
        if _lock(file) or _lock_later(file):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def _lock_later(file: IO[str]) -> bool:
    """Another look: `running_pid` of some other command holds the lock for a moment."""
    time.sleep(0.1)
    return _lock(file)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def running_pid(config: Config) -> int | None:
    try:
        with _pid_path(config).open() as file:
            text = file.read()
            return int(text) if not _lock(file) and text.isdecimal() else None
    except FileNotFoundError:
        return None


def stop(config: Config) -> int | None:
    """Ends this home's daemon and waits for it. Its pid, or None when there was none."""
    pid = running_pid(config)
    if pid is None:
        return None
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while running_pid(config) == pid:
        if time.monotonic() > deadline:
            raise ModelctlError(f"the daemon (process {pid}) does not stop", hint=f"end it with: kill -9 {pid}")
        time.sleep(0.05)
    return pid
