"""CPU of the daemon and of the runner per token, by library, while eight streams of one mix run. Needs Linux and perf.

python -m benchmarks.cpu [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.common import Answer, Ours, models

HERTZ = 4000
INTERPRETER = ("libpython", "python", "_ctypes", "_core", "_asyncio", "_struct", "loop")  # msgspec's, uvloop's


async def crowd(server: Ours, salt: int, n: int) -> list[Answer]:
    return await asyncio.gather(*(server.ask(f"{salt} {i}: tell a story.", n, {0: 1.0}) for i in range(8)))


def measure(server: Ours, salt: int, folder: Path) -> dict[str, dict[str, float]]:
    """Microseconds a token, by process and library."""
    (runner,) = server.runner_pids()
    pids = {"daemon": server.process.pid, "runner": runner}
    data = folder / "perf.data"
    command = ["perf", "record", "-F", str(HERTZ), "-e", "cpu-clock", "-p", ",".join(map(str, pids.values()))]
    with subprocess.Popen([*command, "-o", str(data)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as perf:
        time.sleep(1)
        tokens = sum(answer.n_tokens for answer in asyncio.run(crowd(server, salt, 300)))
        perf.send_signal(signal.SIGINT)
    shown = subprocess.run(
        ["perf", "script", "-i", str(data), "-F", "pid,ip,sym,dso"],
        check=True, capture_output=True, text=True, errors="replace",
    ).stdout  # fmt: skip
    names = {pid: name for name, pid in pids.items()}
    found: dict[str, dict[str, float]] = {name: defaultdict(float) for name in pids}
    for line in shown.splitlines():
        head, _, library = line.rpartition("(")
        who = names.get(int(head.split()[0])) if head else None
        if who:  # not a spare runner, which the daemon has just started
            name = library.rstrip(")").rpartition("/")[2].partition(".")[0]
            found[who][name] += 1e6 / HERTZ / tokens
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Ours(models(4), folder, n_ctx=2560)
        try:
            for salt in (-2, -1):  # adapters are attached, threads tried
                asyncio.run(crowd(server, salt, 60))
            rounds = [measure(server, i, folder) for i in range(parser.parse_args().rounds)]
        finally:
            server.stop()
    python = []
    for found in rounds:
        mine = {who: sum(us for name, us in found[who].items() if name.startswith(INTERPRETER)) for who in found}
        python.append(sum(mine.values()))
        print(f"Python: daemon {mine['daemon']:.0f} us a token, runner {mine['runner']:.0f}, both {python[-1]:.0f}")
    print(f"median of both: {statistics.median(python):.0f} us a token; by library, medians:")
    for who in rounds[0]:
        medians = {name: statistics.median(found[who].get(name, 0) for found in rounds) for name in rounds[0][who]}
        shown = ", ".join(f"{name} {us:.0f}" for name, us in sorted(medians.items(), key=lambda m: -m[1]) if us >= 1)
        print(f"  {who}: {shown}")


if __name__ == "__main__":
    main()
