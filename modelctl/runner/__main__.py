"""The runner: `python -m modelctl.runner --fd N`, a child of the daemon, at the other end of a socketpair.

The main thread reads frames, renders and tokenises; the engine's thread decodes. It ends when the socket ends, also
while it loads, which takes minutes for a large base on a slow disk: no runner outlives its daemon.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading

import modelctl.template.jinja  # noqa: F401  # here, not at the first prompt: a runner may wait for its base
from modelctl.errors import LoadFailed, ModelctlError
from modelctl.runner import frames, llama
from modelctl.runner.engine import Engine
from modelctl.runner.prepare import Preparer


def main() -> int:
    sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    threading.Thread(target=_end_with, args=(sock.fileno(),), name="leash", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a foreground daemon is the daemon's to handle
    _prefer_as_oom_victim()
    body = frames.receive(sock)
    if body is None:
        return 0
    load = frames.to_runner.decode(body)
    assert isinstance(load, frames.Load), "the first frame is a Load"
    return Runner(sock).serve(load)


def _end_with(fd: int) -> None:
    """End this process, whatever its other threads are at, when the other side of the socket `fd` is closed."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always reported; what comes in is for the main thread to read
    poll.poll()
    os._exit(0)


def _prefer_as_oom_victim() -> None:
    """Out of memory, the kernel should take the runner, which can be started again, not the daemon."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("500")
    except OSError:
        pass


class Runner:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def emit(self, frame: frames.FromRunner) -> None:
        with self._sending:
            self._sock.sendall(frames.pack(frame))

    def serve(self, load: frames.Load) -> int:
        llama.start_backend()
        try:
            self.engine = Engine(load, self.emit)
        except LoadFailed as error:
            self._fail(0, error)
            return 1
        self.preparer = Preparer(self.engine.base, self.engine.n_ctx)
        self.emit(self.engine.ready())
        threading.Thread(target=self._decode, name="engine").start()
        while (body := frames.receive(self._sock)) is not None:
            frame = frames.to_runner.decode(body)
            assert not isinstance(frame, frames.Load), "a runner loads once"
            self._handle(frame)
        os._exit(0)  # the daemon is gone: nobody is left to tidy up for, and a decode may be running

    def _decode(self) -> None:
        try:
            self.engine.run()
        except BrokenPipeError:
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)  # without its engine the runner is dead; the daemon sees the socket end

    def _handle(self, frame: frames.Request) -> None:
        try:
            match frame:
                case frames.Generate():
                    self.engine.inbox.put(self.preparer.sequence(frame))
                case frames.Render():
                    self.emit(self.preparer.rendered(frame))
                case frames.Tokenize():
                    self.emit(self.preparer.tokenized(frame))
                case frames.Detokenize():
                    self.emit(self.preparer.detokenized(frame))
                case _:
                    self.engine.inbox.put(frame)
        except ModelctlError as error:
            self._fail(frame.id, error)

    def _fail(self, ident: int, error: ModelctlError) -> None:
        self.emit(frames.Failed(ident, error.status, error.message, error.hint or ""))


if __name__ == "__main__":
    sys.exit(main())
