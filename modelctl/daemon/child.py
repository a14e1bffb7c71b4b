"""One child process: spawned with a socket and little else, its stderr kept, its end noticed whoever holds a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import modelctl

log = logging.getLogger("modelctl.runner")

RUNNER = (sys.executable, "-P", "-m", "modelctl.runner")  # -P: nothing is imported from the working folder
N_LAST_LINES = 20
REFILL_AFTER = 3.0  # seconds
# What llama.cpp, its backends and Python need; never the rest, which may hold keys.
_ENV = re.compile(
    r"PATH|HOME|TMPDIR|TZ|LANG|LC_\w+|VIRTUAL_ENV|(DY)?LD_\w+|(OMP|GOMP|KMP|GGML|LLAMA|CUDA|NVIDIA|HIP|HSA|ROCR|GPU|VK|"
    r"SYCL|ONEAPI|OPENBLAS|MKL)_\w+|GLIBC_TUNABLES|MODELCTL_TEST_\w+"
)
# What is large goes back to the system when it is freed; glibc would soon begin to keep it. (Its huge pages would make
# a step 1 to 5% faster, and a load take twice as long.)
_MALLOC = "glibc.malloc.mmap_threshold=4194304"


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in environ.items() if _ENV.fullmatch(key)}
    root = str(Path(modelctl.__file__).resolve().parent.parent)  # a checkout need not be installed
    # Without GGML_NO_BACKTRACE a failed assertion forks a debugger first and takes a second to die.
    return {"GLIBC_TUNABLES": _MALLOC, **kept, "PYTHONPATH": root, "GGML_NO_BACKTRACE": "1"}


class Child:
    """`socket` is our end of the pair; the child finds its own in `--fd N` and ends when ours closes."""

    def __init__(self, command: Sequence[str] = RUNNER) -> None:
        """Raises `OSError` when it cannot be started."""
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()  # the return code; negative: a signal
        self.last_lines: deque[str] = deque(maxlen=N_LAST_LINES)
        self.socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = self._spawn(command, theirs.fileno())
            except OSError:
                self.socket.close()
                raise
        self.pid = self._process.pid
        # Threads, because both waits must work with any event loop and outlive grandchildren that keep stderr open.
        self._pump = threading.Thread(target=self._read_stderr, name=f"stderr-{self.pid}", daemon=True)
        self._pump.start()
        threading.Thread(target=self._wait, name=f"wait-{self.pid}", daemon=True).start()

    @staticmethod
    def _spawn(command: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "--fd", str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[fd],
            env=child_environment(os.environ),
            cwd="/",
            start_new_session=True,  # a Ctrl-C in the daemon's terminal is the daemon's to handle
        )

    def kill(self) -> None:
        """The whole group, for a crashing child may have forked."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(4096):
            text = line.decode(errors="replace").rstrip()
            if text:
                self.last_lines.append(text)
                log.info("runner %d: %s", self.pid, text)

    def _wait(self) -> None:
        code = self._process.wait()
        self._pump.join(timeout=0.2)  # the last words matter; a grandchild may hold the pipe for ever
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._set_exited, code)

    def _set_exited(self, code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(code)


class Spare:
    """A runner started ahead: its imports are done, it waits to be told what to load, so a cold load begins half a
    second earlier. It sleeps until then. One event loop; `close` it in the end."""

    def __init__(self, command: Sequence[str] = RUNNER, *, busy: Callable[[], bool] = lambda: False) -> None:
        """`busy`: whether the machine has better things to do than to start one."""
        self._command = command
        self._busy = busy
        self._child: Child | None = None
        self._refill: asyncio.TimerHandle | None = None

    def take(self) -> Child:
        """The spare, or else a new child, which has to start first. Raises `OSError` when it cannot be started."""
        child, self._child = self._child, None
        self.refill_later()
        return Child(self._command) if child is None or child.exited.done() else child

    def refill_later(self) -> None:
        """Not at once: a load that has just begun should have the machine, and so should an answer, which half a second
        of imports beside it would slow down by half."""
        if self._refill is not None:
            self._refill.cancel()
        self._refill = asyncio.get_running_loop().call_later(REFILL_AFTER, self._start)

    def _start(self) -> None:
        if self._busy():
            self.refill_later()
            return
        with contextlib.suppress(OSError):  # whoever needs a child next will be told
            self._child = self._child or Child(self._command)

    def close(self) -> None:
        if self._refill is not None:
            self._refill.cancel()
        if self._child is not None:
            self._child.socket.close()
            self._child.kill()


def describe_exit(code: int) -> str:
    """`signal 9, SIGKILL` or `exit code 1`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
