"""Sixteen streams that share 1 to 16 adapters: tokens/s against llama-server, as a table and as a picture.

    LLAMA_SERVER=... python -m benchmarks.curve [--rounds 3] [--plot docs/adapters.png]

Medians of the rounds. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.common import both, crowd, models

N_STREAMS = 16
COUNTS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    with both(models(N_STREAMS), n_parallel=N_STREAMS, n_ctx=512) as (ours, peer):
        crowd(ours, [{k: 1.0} for k in range(N_STREAMS)], 24, 0)  # joins the adapters
        for n in COUNTS:
            mixes = [{k % n: 1.0} for k in range(N_STREAMS)]
            found: dict[str, list[float]] = {}
            for i in range(arguments.rounds):
                for server in (ours, peer):
                    found.setdefault(server.name, []).append(crowd(server, mixes, 64, 100 * n + i)["tokens/s"])
            for name, values in found.items():
                speeds.setdefault(name, []).append(statistics.median(values))
            print(f"{n:2} adapters: " + "   ".join(f"{name} {s[-1]:6.1f}" for name, s in speeds.items()), flush=True)
    if arguments.plot:
        plot(speeds, arguments.plot)


def plot(speeds: dict[str, list[float]], target: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, values in speeds.items():
        axes.plot(COUNTS, values, marker="o", label=name)
    axes.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, ylim=(0, None))
    axes.set(xlabel=f"adapters among {N_STREAMS} streams", ylabel="tokens/s, all streams")
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
