"""What the store costs: storing a large file against sha256sum and cp, listing, collecting.

    python benchmarks/store.py [--gigabytes 2] [--rounds 5] [--folder DIR]

`--folder` says on which file system; it needs three times the size in free space. Rounds alternate between all that is
compared, each step after a sync, so that nobody pays for another's dirty pages; what is printed are medians. Storing
happens in a process of its own, whose start counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from modelctl.store import Layer, Manifest, Store, media
from modelctl.store.collect import collect

MEBI = 1 << 20


def seconds(act: Callable[[], object]) -> float:
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def run(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def create(store: Store, source: Path, link: bool) -> None:
    with store.writing():
        put, config = store.put(source, link=link), store.put(b"{}")
        layers = (Layer(media.MODEL, put.digest, put.size),)
        store.write("large", Manifest(Layer(media.CONFIG, config.digest, config.size), layers))


def write_large(source: Path, n_mebi: int) -> None:
    block = os.urandom(4 * MEBI - 8)
    with source.open("wb") as out:
        for at in range(0, n_mebi, 4):
            out.write(at.to_bytes(8, "big") + block)
    run("sha256sum", str(source))()  # into the page cache


def large_file(folder: Path, n_mebi: int, n_rounds: int) -> None:
    source, copy, root = folder / "source", folder / "copy", folder / "store"
    write_large(source, n_mebi)
    storing = (sys.executable, __file__, "--store", str(source), str(root))
    steps = {
        "sha256sum": (run("sha256sum", str(source)), ()),
        "cp": (run("cp", "--reflink=never", str(source), str(copy)), (copy,)),
        "durable copy": (run("dd", f"if={source}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"), (copy,)),
        "create": (run(*storing), ()),
        "create, again": (run(*storing), (root,)),
        "create --link": (run(*storing, "--link"), (root,)),
    }
    took: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(n_rounds):
        for name, (act, left) in steps.items():
            took[name].append(seconds(act))
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    report(took)
    print(f"memory: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB at most")


def report(took: dict[str, list[float]]) -> None:
    """Ratios are medians of those within each round: the machine changes its pace from one to the next."""
    for name, times in took.items():
        line = f"{name}: {median(times):.2f} s"
        if name.startswith("create"):
            against = {"sha256sum + cp": ("sha256sum", "cp"), "sha256sum": ("sha256sum",)}
            against["sha256sum + durable copy"] = ("sha256sum", "durable copy")
            for what, parts in against.items():
                ratios = [
                    mine / sum(theirs) for mine, *theirs in zip(times, *(took[part] for part in parts), strict=True)
                ]
                line += f" = {median(ratios):.2f} x ({what})"
        print(line)


def many_models(folder: Path, n_models: int = 1000) -> None:
    store = Store(folder / "home" / "store")
    with store.writing():
        shared = [Layer(media.MODEL, put.digest, put.size) for put in (store.put(b"{}"), store.put(b"base"))]
        for n in range(n_models):
            own = store.put(b"adapter %d" % n)
            store.write(f"model-{n}", Manifest(shared[0], (shared[1], Layer(media.ADAPTER, own.digest, own.size))))
    print(f"list of {n_models} models: {median(seconds(Store(store.root).list) for _ in range(5)):.3f} s")
    environ = {**os.environ, "MODELCTL_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "modelctl", "list"]
    act = partial(subprocess.run, command, env=environ, check=True, stdout=subprocess.DEVNULL)
    took = median(seconds(act) for _ in range(5))
    print(f"`modelctl list` of them: {took:.3f} s")


def many_blobs(folder: Path, n_blobs: int = 10_000) -> None:
    """Half of them garbage. Written past the store: ten thousand durable writes are not what is measured."""
    store = Store(folder / "blobs-store")
    layers = []
    config = store.put(b"{}")
    for n in range(n_blobs):
        data = b"blob %d" % n
        layer = Layer(media.MODEL, store.put(b"").digest.of(data), len(data))
        store.blobs.path(layer.digest).write_bytes(data)
        layers.append(layer)
    for n in range(0, n_blobs // 2, 10):
        store.write(f"model-{n}", Manifest(Layer(media.CONFIG, config.digest, config.size), tuple(layers[n : n + 10])))
    n_swept = 0

    def gc() -> None:
        nonlocal n_swept
        n_swept = len(collect(store, grace=0).blobs)

    took = seconds(gc)
    print(f"gc over {n_blobs} blobs and {n_blobs // 20} models, {n_swept} swept: {took:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--store", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--link", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.store:
        source, root = args.store
        create(Store(root), source, args.link)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        many_models(Path(folder))
        many_blobs(Path(folder))
        large_file(Path(folder), int(args.gigabytes * 1024), args.rounds)


if __name__ == "__main__":
    main()
