"""What the store costs: storing a large file against sha256sum and cp, listing, collecting.

    python benchmarks/store.py [--gigabytes 2] [--folder DIR]

`--folder` says on which file system; it needs three times the size in free space. Each figure is one run after a
warm-up read of the file, and what was written before is synced first, so that nobody pays for another's dirty pages.
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
from pathlib import Path

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


def large_file(folder: Path, n_mebi: int) -> None:
    source = folder / "source"
    block = os.urandom(4 * MEBI - 8)
    with source.open("wb") as out:
        for at in range(0, n_mebi, 4):
            out.write(at.to_bytes(8, "big") + block)
    run("sha256sum", str(source))()  # into the page cache
    hashing = seconds(run("sha256sum", str(source)))
    copying = seconds(run("cp", "--reflink=never", str(source), str(folder / "copy")))
    (folder / "copy").unlink()
    durably = seconds(run("dd", f"if={source}", f"of={folder / 'copy'}", "bs=4M", "conv=fsync", "status=none"))
    (folder / "copy").unlink()
    print(f"sha256sum {hashing:.2f} s, cp {copying:.2f} s, a copy with fsync {durably:.2f} s")
    for name, link in (("create", False), ("create, again", False), ("create --link", True)):
        if link:
            shutil.rmtree(folder / "store")
        store = Store(folder / "store")
        took = seconds(lambda: create(store, source, link))  # noqa: B023  # called at once
        print(
            f"{name}: {took:.2f} s = {took / (hashing + copying):.2f} x (sha256sum + cp)"
            f" = {took / (hashing + durably):.2f} x (sha256sum + durable copy) = {took / hashing:.2f} x sha256sum"
        )
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")


def many_models(folder: Path, n_models: int = 1000) -> None:
    store = Store(folder / "home" / "store")
    with store.writing():
        shared = [Layer(media.MODEL, put.digest, put.size) for put in (store.put(b"{}"), store.put(b"base"))]
        for n in range(n_models):
            own = store.put(b"adapter %d" % n)
            store.write(f"model-{n}", Manifest(shared[0], (shared[1], Layer(media.ADAPTER, own.digest, own.size))))
    print(f"list of {n_models} models: {seconds(Store(store.root).list):.3f} s")
    environ = {**os.environ, "MODELCTL_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "modelctl", "list"]
    took = seconds(lambda: subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL))
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
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        many_models(Path(folder))
        many_blobs(Path(folder))
        large_file(Path(folder), int(args.gigabytes * 1024))


if __name__ == "__main__":
    main()
