"""`lora set` while eight streams run: how soon it is acknowledged, and whether a stream stumbles. And CPU per token.

Then eight streams of four mixes with a rescale every 20 ms: graphs rebuilt, and tokens/s against none.

python -m benchmarks.rescale
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import tempfile
import time
import urllib.request
from itertools import pairwise
from math import inf
from pathlib import Path

from benchmarks.common import Answer, Ours, models

N_SETS = 50
N_ROUNDS, N_WINDOWS = 4, 12  # windows: a multiple of 4
HEAD = b"POST /api/lora-adapters HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"


class Rescaler:
    """Sets scales on a connection that stays open, as a program's does; with blocking calls, which weigh little on the
    cores that are measured."""

    def __init__(self, server: Ours) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Rescaler:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def set_scale(self, scale: float) -> float:
        """Seconds until POST /api/lora-adapters is answered."""
        body = b'{"model": "bench", "adapters": [{"id": 0, "scale": %.3f}]}' % scale
        started = time.perf_counter()
        self._socket.sendall(HEAD % len(body) + body)
        answer = self._socket.recv(1 << 16)
        seconds = time.perf_counter() - started
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"}"), answer
        return seconds

    def every(self, pause: float, *, n: float = inf, seconds: float = inf, idly: bool = False) -> list[float]:
        """Seconds of each, in turn: `n` times, or for so long. `idly`: only wakes up each time, and sends nothing."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < n and time.perf_counter() < end:
            times.append(0.0 if idly else self.set_scale(len(times) % 100 / 100))
            time.sleep(pause)
        return times


async def run(server: Ours, sets: int) -> tuple[list[Answer], list[float]]:
    streams = [asyncio.create_task(server.ask(f"{sets} {i}: tell a story.", 160, {1: 1.0})) for i in range(8)]
    await asyncio.sleep(1)
    with Rescaler(server) as rescaler:
        times = await asyncio.to_thread(rescaler.every, 0.05, n=sets)
    return await asyncio.gather(*streams), times


async def storm(server: Ours, salt: int) -> tuple[dict[bool, list[float]], int]:
    """(seconds between tokens of eight streams under four mixes, without and with rescales, changes of adapters in
    llama.cpp meanwhile). A second each, in one crowd: two crowds differ by more than rescales cost. And in the order
    without, with, with, without: steps grow longer with the context, by 3 % a second, which must favour neither.
    The client wakes up every 20 ms in both: that alone takes 2 % from an engine that uses all cores."""
    tasks = [asyncio.create_task(server.ask(f"{salt} {i}: tell a story.", 960, {i % 4: 1.0})) for i in range(8)]
    await asyncio.sleep(2)
    windows: list[tuple[bool, float, float]] = []
    before = reserves(server)
    with Rescaler(server) as rescaler:
        for i in range(N_WINDOWS):
            rescaling = i % 4 in (1, 2)
            started = time.perf_counter()
            await asyncio.to_thread(rescaler.every, 0.02, seconds=1, idly=not rescaling)
            windows.append((rescaling, started, time.perf_counter()))
    changes = reserves(server) - before
    assert not any(task.done() for task in tasks), "the streams ended too soon"
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for answer in await asyncio.gather(*tasks):
        for a, b in pairwise(answer.times):
            for rescaling, start, end in windows:
                if start <= a and b <= end:
                    gaps[rescaling].append(b - a)
    return gaps, changes


def reserves(server: Ours) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("modelctl_reserves_total")))


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(in its own code, in the kernel) of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Ours(models(4), Path(folder))
        try:
            asyncio.run(server.ask("Hello", 4))
            before = cpu_seconds(server.process.pid)
            calm, _ = asyncio.run(run(server, 0))
            after = cpu_seconds(server.process.pid)
            tokens = sum(a.n_tokens for a in calm)
            own, kernel = ((b - a) / tokens * 1e6 for a, b in zip(before, after, strict=True))
            print(f"daemon's CPU per token, eight streams: {own:.0f} us and {kernel:.0f} us in the kernel")
            stirred, times = asyncio.run(run(server, N_SETS))
            milliseconds = sorted(t * 1e3 for t in times)
            print(
                f"lora set acknowledged: median {statistics.median(milliseconds):.1f} ms, worst {milliseconds[-1]:.1f}"
            )
            for name, answers in (("without", calm), ("with", stirred)):
                gaps = sorted(g for a in answers for g in a.gaps)
                print(f"gaps between tokens {name} rescales: median {statistics.median(gaps) * 1e3:.0f} ms, "
                      f"99% {gaps[int(len(gaps) * 0.99)] * 1e3:.0f} ms, worst {gaps[-1] * 1e3:.0f} ms")  # fmt: skip
            asyncio.run(storm(server, -1))  # joins the adapters
            ratios, changes = [], 0
            for i in range(N_ROUNDS):
                between, n = asyncio.run(storm(server, i))
                ratios.append(statistics.fmean(between[False]) / statistics.fmean(between[True]))
                changes += n
            each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            median = statistics.median(ratios)
            print(f"a rescale every 20 ms: {changes} graphs rebuilt, tokens/s x {median:.3f} ({each})")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
