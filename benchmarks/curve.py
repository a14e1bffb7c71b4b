"""Sixteen streams that share 1 to 16 adapters: tokens/s against llama-server, as a table and as a picture.

    LLAMA_SERVER=... python -m benchmarks.curve [--plot docs/adapters.png]

The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import both, crowd, models

N_STREAMS = 16
COUNTS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path)
    plot_to = parser.parse_args().plot
    speeds: dict[str, list[float]] = {}
    with both(models(N_STREAMS), n_parallel=N_STREAMS, n_ctx=512) as (ours, peer):
        crowd(ours, [{k: 1.0} for k in range(N_STREAMS)], 24, 0)  # joins the adapters
        for n in COUNTS:
            for server in (ours, peer):
                mixes = [{k % n: 1.0} for k in range(N_STREAMS)]
                speeds.setdefault(server.name, []).append(crowd(server, mixes, 64, n)["tokens/s"])
            print(f"{n:2} adapters: " + "   ".join(f"{name} {s[-1]:6.1f}" for name, s in speeds.items()), flush=True)
    if plot_to:
        plot(speeds, plot_to)


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
