"""Eight streams while another process keeps one core busy: against llama-server.

LLAMA_SERVER=... python -m benchmarks.busy_core [--rounds 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.common import Case, both, compare, crowd, models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with both(models()) as (ours, peer):
        rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            cases: dict[str, Case] = {
                "one stream, base, one core busy": lambda s, i: crowd(s, [{}], 96, i),
                "eight streams, one mix, one core busy": lambda s, i: crowd(s, [{0: 1.0}] * 8, 64, 100 + i),
            }
            compare(ours, peer, cases, rounds)
        finally:
            rival.kill()


if __name__ == "__main__":
    main()
