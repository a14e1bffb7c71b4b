"""16 writers of overlapping models, a gc loop and random kills; see store_faults.py, which runs it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

from store_checks import litter, look
from store_samples import model

from modelctl.store import Digest, NotFound, Store
from modelctl.store.collect import collect

PATIENCE = 30  # seconds in which each of the processes comes to an end of something, when nobody kills it


def soak(seconds: float, folder: Path, n_workers: int = 16, say: Callable[[str], None] = print) -> list[str]:
    """`n_workers` writers of overlapping models, gc without grace, a reader, a kill every 0.1 s. The violations."""
    store, log = Store(folder / "store"), folder / "log"
    log.mkdir()
    keep = store.write("keep", model(store, b"shared 0", b"shared 1"))
    fork = get_context("fork")
    jobs = [(_write_forever, (store.root, log / f"{n}")) for n in range(n_workers)]
    jobs += [(_gc_forever, (store.root, log / "gc")), (_read_forever, (store.root, log / "reader"))]
    running = [fork.Process(target=target, args=args) for target, args in jobs]
    for process in running:
        process.start()
    n_kills, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(random.uniform(0, 0.2))
        n = random.randrange(n_workers + 1)  # writers and gc
        running[n].kill()
        running[n].join()
        target, args = jobs[n]
        running[n] = fork.Process(target=target, args=args)
        running[n].start()
        n_kills += 1
    problems = _stuck([args[1] for _, args in jobs])
    for process in running:
        process.kill()
        process.join()
    problems += _judge_soak(store, log, keep.digest, n_kills, say)
    for problem in problems[:20]:
        say(problem)
    return problems


def _stuck(logs: list[Path]) -> list[str]:
    """Who comes to no end: a deadlock."""
    before, end = {path: _n_done(path) for path in logs}, time.monotonic() + PATIENCE
    while stuck := [path for path in logs if _n_done(path) == before[path]]:
        if time.monotonic() > end:
            return [f"{path.name} is stuck" for path in stuck]
        time.sleep(0.1)
    return []


def _n_done(log: Path) -> int:
    return log.read_text().count("did ") if log.exists() else 0


def _write_forever(root: Path, log: Path) -> None:
    """Creates and removes models of its own and two that everybody writes; says so before and after."""
    random.seed()
    store = Store(root)
    with log.open("a", buffering=1) as file:
        while True:
            name = random.choice(["everybody-0", "everybody-1", *(f"worker-{log.name}-{n}" for n in range(3))])
            start = time.monotonic()
            try:
                digest = _remove(store, name, file) if random.random() < 0.3 else _create(store, name, file)
                print("did", name, digest, f"{time.monotonic() - start:.3f}", file=file)
            except BaseException as error:
                print("bug", repr(error), file=file)


def _create(store: Store, name: str, file: TextIO) -> Digest:
    with store.writing():
        manifest = model(store, *(b"shared %d" % n * 20_000 for n in random.sample(range(12), 3)))
        print("try", name, manifest.digest, file=file)
        store.write(name, manifest)
    return manifest.digest


def _remove(store: Store, name: str, file: TextIO) -> str:
    print("try", name, "-", file=file)
    with suppress(NotFound):
        store.remove(name)
    return "-"


def _gc_forever(root: Path, log: Path) -> None:
    with log.open("a", buffering=1) as file:
        while True:
            try:
                print("did", "gc", len(collect(Store(root), grace=0).blobs), file=file)
            except BaseException as error:
                print("bug", repr(error), file=file)


def _read_forever(root: Path, log: Path) -> None:
    store = Store(root)
    with log.open("a", buffering=1) as file:
        while True:
            try:
                keep = store.resolve("keep")
                for layer in keep.manifest:
                    store.read(layer.digest)
                print("did", "list", len(store.list()), file=file)
            except BaseException as error:
                print("bug", repr(error), file=file)


def _judge_soak(store: Store, log: Path, keep: object, n_kills: int, say: Callable[[str], None]) -> list[str]:
    lines = {path.name: [line.split() for line in path.read_text().splitlines()] for path in log.iterdir()}
    problems = [" ".join(line) for found in lines.values() for line in found if line[0] == "bug"]
    problems += [f"{name} did nothing" for name, found in lines.items() if not any(line[0] == "did" for line in found)]
    for name, found in lines.items():
        problems += _judge_worker(store, [line for line in found if f"worker-{name}-" in line[1]])
    collected = collect(store, grace=0)
    problems += look(store.root, rotten_ok=False).problems + litter(store)
    problems += [f"damaged: {damage}" for damage in store.damaged()]
    if store.resolve("keep").digest != keep:
        problems.append("I7: keep is another model")
    n_done = Counter(
        "gc" if name == "gc" else "list" if name == "reader" else "write"
        for name, found in lines.items()
        for line in found
        if line[0] == "did"
    )
    slowest = max(float(line[3]) for found in lines.values() for line in found if line[0] == "did" and len(line) > 3)
    say(
        f"{n_done['write']} writes, {n_done['gc']} gcs, {n_done['list']} lists, {n_kills} kills, slowest write "
        f"{slowest:.1f} s, {len(collected.blobs)} blobs for the last gc, {len(problems)} violations"
    )
    return problems


def _judge_worker(store: Store, lines: list[list[str]]) -> Iterator[str]:
    """Every name is as the last thing that was reported done left it, or as one tried and killed since would have."""
    allowed: dict[str, list[str]] = {}
    for verb, name, digest, *_ in lines:
        allowed[name] = [digest] if verb == "did" else [*allowed.get(name, ["-"]), digest]
    for name, digests in allowed.items():
        try:
            found = str(store.resolve(name).digest)
        except NotFound:
            found = "-"
        if found not in digests:
            yield f"I4: {name} points at {found[:19]}, not at {digests}"
