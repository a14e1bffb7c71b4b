"""From nothing in memory to the first token: a model that is not loaded, against starting llama-server on it.

    LLAMA_SERVER=... python -m benchmarks.cold [--rounds 5]

Ours: the daemon runs, the runner does not (keep_alive 0 unloaded it). The peer is one program a model: it starts, with
the same base and adapters, and is asked as soon as it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import Ours, Peer, models


def ours_cold(server: Ours) -> float:
    asyncio.run(server.ask("Hello", 1, keep_alive=0))
    time.sleep(5)  # the next runner is started ahead
    return asyncio.run(server.ask("Hello there", 1)).first


def peer_cold(folder: Path) -> float:
    started = time.perf_counter()
    peer = Peer(models(), folder)
    try:
        asyncio.run(peer.ask("Hello there", 1))
        return time.perf_counter() - started
    finally:
        peer.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Ours(models(), folder)
        try:
            pairs = [(ours_cold(server), peer_cold(folder)) for _ in range(rounds)]
        finally:
            server.stop()
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"cold load to first token: modelctl {ours:.2f} s, llama-server {peer:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
