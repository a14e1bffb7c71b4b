"""A command on a terminal: what it prints is read, what somebody would type is sent."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO


class Terminal:
    """`expect` waits for a text after what was seen last; `text` is everything so far."""

    def __init__(self, *args: str, env: Mapping[str, str] | None = None, stdout: IO[bytes] | None = None) -> None:
        self._master, slave = pty.openpty()
        ours = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        full = {**ours, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modelctl", *args],
            stdin=slave,
            stdout=stdout or slave,
            stderr=slave,
            env=full,
            start_new_session=True,
            preexec_fn=_take_terminal,  # so that Ctrl-C reaches it
        )
        os.close(slave)
        self.text = ""
        self._seen = 0

    def expect(self, wanted: str, seconds: float = 120) -> str:
        """Everything up to and with `wanted`."""
        deadline = time.monotonic() + seconds
        while wanted not in self.text[self._seen :]:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.text[self._seen :]!r}"
            if not self._read():
                assert wanted in self.text[self._seen :], f"ended without {wanted!r}: {self.text!r}"
        end = self.text.index(wanted, self._seen) + len(wanted)
        found, self._seen = self.text[self._seen : end], end
        return found

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ctrl_c(self) -> None:
        """Once it sleeps: between showing a prompt and waiting for keys, readline notices an interrupt at the next key
        only."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + 60
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "it never rests"
            time.sleep(0.01)
        self.send("\x03")

    def line(self, text: str) -> None:
        self.send(text + "\r")

    def wait(self, seconds: float = 120) -> int:
        deadline = time.monotonic() + seconds
        while self._read() and time.monotonic() < deadline:
            pass
        return self.process.wait(timeout=max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """False at the end."""
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
