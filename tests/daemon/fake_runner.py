"""A child that speaks the frames and computes nothing: for tests of who starts, waits, is told and goes.

A raw prompt is a list of words: `tokens=N` answers N times "x ", `delay=S` seconds apart, `die=N` kills itself with
SIGKILL after N tokens, `fail=STATUS` is refused. A Load of the path `/refuse` fails, `/die` aborts with last words,
`/hang` never answers.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from modelctl.runner import frames
from modelctl.runner.frames import (
    Attach,
    Attached,
    Cancel,
    Delta,
    Done,
    Embed,
    Embedded,
    Failed,
    Generate,
    Load,
    Ready,
    Remix,
    Render,
    Rendered,
    Stats,
    StatsReply,
    Step,
)

DONE = Done(reason="stop", prompt_tokens=3, cached_tokens=1, queue_ns=1, prompt_ns=2, eval_tokens=0, eval_ns=3)


class Fake:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.running: dict[int, dict[str, Any]] = {}
        self.attached: list[str] = []
        self.generated = 0
        self.cancelled: list[int] = []
        self.mixes: dict[int, list[Any]] = {}
        self.embedded: list[int] = []

    def send(self, frame: Any) -> None:
        self.sock.sendall(frames.pack(frame))

    def run(self) -> None:
        while True:
            due = min((job["due"] for job in self.running.values()), default=None)
            wait = None if due is None else max(0.0, due - time.monotonic())
            if select.select([self.sock], [], [], wait)[0]:
                body = frames.receive(self.sock)
                if body is None:
                    return
                self.take(frames.to_runner.decode(body))
            for id, job in list(self.running.items()):
                if job["due"] <= time.monotonic():
                    self.step(id, job)

    def take(self, frame: frames.ToRunner) -> None:
        match frame:
            case Load(path="/refuse"):
                self.send(Failed(0, 400, "cannot read the base", "make it again"))
                sys.exit(1)
            case Load(path="/die"):
                print("GGML_ASSERT(n_dims > 0) failed", file=sys.stderr, flush=True)
                os.abort()
            case Load(path="/hang"):
                time.sleep(60)
            case Load():
                self.attached += [adapter.digest for adapter in frame.adapters]
                self.send(Ready(1000, frame.n_ctx, 8192, 135, 1000, 10, False, 0, "CPU"))
            case Attach():
                if any(a.digest == "sha256:bad" for a in frame.adapters):
                    self.send(Failed(frame.id, 400, "adapter does not fit"))
                else:
                    self.attached += [adapter.digest for adapter in frame.adapters]
                    self.send(Attached(frame.id, 5))
            case Render():
                self.send(Rendered(frame.id, f"<{frame.prompt.raw}>", [1, 2]))
            case Stats():
                self.send(StatsReply(frame.id, self.stats()))
            case Embed():
                self.embedded.append(len(frame.inputs))
                self.send(Embedded(frame.id, [[0.6, 0.8, 0.0]] * len(frame.inputs), len(frame.inputs)))
            case Remix():
                self.mixes.update(dict.fromkeys(frame.ids, frame.mix))
            case Cancel():
                self.cancelled.append(frame.id)
                if self.running.pop(frame.id, None):
                    self.send(Step([Delta(frame.id, "", 0, done=DONE)]))
            case Generate():
                self.mixes[frame.id] = frame.mix
                words = dict(word.split("=") for word in (frame.prompt.raw or "tokens=3").split())
                if "fail" in words:
                    self.send(Failed(frame.id, int(words["fail"]), "this prompt is refused", "write another"))
                else:
                    self.running[frame.id] = {"words": words, "n": 0, "due": time.monotonic()}

    def stats(self) -> dict[str, Any]:
        return {
            "attached": self.attached,
            "generated": self.generated,
            "cancelled": self.cancelled,
            "mixes": sorted(self.mixes.items()),
            "embedded": self.embedded,
            "environ": dict(os.environ),
        }

    def step(self, id: int, job: dict[str, Any]) -> None:
        words = job["words"]
        if job["n"] == int(words.get("die", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if job["n"] >= int(words.get("tokens", 3)):
            del self.running[id]
            self.send(Step([Delta(id, "", 0, done=DONE)]))
            return
        job["n"] += 1
        self.generated += 1
        job["due"] = time.monotonic() + float(words.get("delay", 0))
        self.send(Step([Delta(id, "x ")]))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fd", type=int, required=True)
    Fake(socket.socket(fileno=arguments.parse_args().fd)).run()
