"""Eight streams while another process keeps one core busy: against llama-server.

LLAMA_SERVER=... python -m benchmarks.busy_core [--rounds 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.common import both, compare, crowd, models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with both(models()) as (ours, peer):
        rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            print("one stream, base, one core busy", flush=True)
            compare(ours, peer, lambda s, i: crowd(s, [{}], 96, i), rounds)
            print("eight streams, one mix, one core busy", flush=True)
            compare(ours, peer, lambda s, i: crowd(s, [{0: 1.0}] * 8, 64, 100 + i), rounds)
        finally:
            rival.kill()


if __name__ == "__main__":
    main()
