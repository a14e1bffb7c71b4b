"""A soak: clients with random mixes, cancels and rescales, for as long as asked; a small report at the end.

    python -m benchmarks.soak [--minutes 30] [--clients 32]

It fails (exit 1) on a crash, a wrong answer's shape, a stuck request, or memory that grows by more than 1 MB a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.common import QUESTION, Ours, models
from benchmarks.rescale import Rescaler

STUCK = 300.0  # seconds a request may take, with so many clients on two cores
WARM_UP = 5.0  # minutes before memory is watched


class Soak:
    def __init__(self, server: Ours, minutes: float, n_adapters: int) -> None:
        self.server = server
        self.until = time.monotonic() + 60 * minutes
        self.n_adapters = n_adapters
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[float, int]] = []  # (minutes, bytes of daemon and runner)
        self.pids: set[int] = set()
        self.started = time.monotonic()

    async def client(self, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.until:
            adapters = rng.sample(range(self.n_adapters), rng.choice([0, 1, 1, 2]))
            mix = {a: rng.choice([0.5, 1.0, -0.25]) for a in adapters}
            prompt = f"{rng.randrange(12)} {QUESTION}" * rng.choice([1, 1, 8])
            options = {"temperature": rng.choice([0, 0.8]), "seed": 1, "deterministic": rng.random() < 0.05}
            ask = asyncio.create_task(self.server.ask(prompt, rng.randrange(4, 80), mix, options=options))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 5)
                ask.cancel()
            try:
                answer = await asyncio.wait_for(ask, STUCK)
                self.counts["answered" if answer.n_tokens else "empty"] += 1
                self.counts["tokens"] += answer.n_tokens
            except asyncio.CancelledError:
                self.counts["cancelled"] += 1
            except TimeoutError:
                self.counts["stuck"] += 1
            except (OSError, SystemExit, json.JSONDecodeError) as error:
                self.counts["failed"] += 1
                print(f"client {seed}: {error}", flush=True)

    async def rescaler(self) -> None:
        rng = random.Random(0)
        while time.monotonic() < self.until:
            with Rescaler(self.server) as rescaler:
                await asyncio.to_thread(rescaler.set_scale, rng.random())
            self.counts["rescales"] += 1
            await asyncio.sleep(1)

    async def watcher(self) -> None:
        while time.monotonic() < self.until:
            pids = self.server.runner_pids()
            self.pids |= pids
            total = sum(map(resident, pids | {self.server.process.pid}))
            self.memory.append(((time.monotonic() - self.started) / 60, total))
            await asyncio.sleep(15)

    async def run(self, n_clients: int) -> None:
        await asyncio.gather(self.rescaler(), self.watcher(), *(self.client(i) for i in range(n_clients)))

    def slope(self) -> float:
        """MB a minute after the warm-up, by least squares."""
        points = [(m, b / 1e6) for m, b in self.memory if m > min(WARM_UP, self.memory[-1][0] / 3)]
        mean_m = sum(m for m, _ in points) / len(points)
        mean_b = sum(b for _, b in points) / len(points)
        spread = sum((m - mean_m) ** 2 for m, _ in points)
        return sum((m - mean_m) * (b - mean_b) for m, b in points) / spread if spread else 0.0


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    base = models()
    with tempfile.TemporaryDirectory() as folder:
        server = Ours(base, Path(folder))
        try:
            asyncio.run(server.ask("Hello", 4))
            soak = Soak(server, arguments.minutes, len(base.adapters))
            asyncio.run(soak.run(arguments.clients))
        finally:
            alive = server.process.poll() is None
            server.stop()
    minutes, counts = soak.memory[-1][0], soak.counts
    print(f"{minutes:.0f} minutes, {arguments.clients} clients: {dict(counts)}")
    print(f"memory {soak.memory[0][1] / 1e6:.0f} -> {soak.memory[-1][1] / 1e6:.0f} MB, slope {soak.slope():.2f} MB/min")
    every = max(1, len(soak.memory) // 12)
    print("memory by the minute:", ", ".join(f"{m:.0f}: {b / 1e6:.0f} MB" for m, b in soak.memory[::every]))
    print(f"daemon alive at the end: {alive}; runners used: {len(soak.pids)}")
    good = alive and len(soak.pids) == 1 and soak.slope() < 1 and not (counts["stuck"] or counts["failed"])
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
