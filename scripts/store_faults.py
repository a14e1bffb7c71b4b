"""Injects faults into the store and checks after each that nothing is lost, torn or left behind.

    store_faults.py points [--ops create,rm] [--every N]   SIGKILL, EIO and ENOSPC at every system call on the store
    store_faults.py soak [--seconds 60]                    16 writers, a gc loop and random kills

`points` needs strace. Each point runs one operation in a process of its own on a copy of a small store, with one
fault in one system call, then checks the eight invariants:

    I1 every blob hashes to its name                    I5 the store works without any manual step
    I2 every manifest parses, all its blobs are there   I6 nothing outside the store changed
    I3 a name points at the old or the new manifest     I7 no other model became unusable
    I4 success survives, failure leaves nothing seen    I8 the same command, retried, succeeds
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from modelctl.store import Layer, Manifest, NotFound, Store, StoreError, archive, media, ollama  # noqa: E402  # noqa: E402
from modelctl.store.collect import collect  # noqa: E402
from modelctl.store.verify import verify  # noqa: E402

FAULTS = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
GO = "/store-faults-go"  # looked up right before the operation, to find its place in the trace
REFUSED, BUG = 1, 3
HUNG_AFTER = 30  # seconds

Names = dict[str, str]  # what names point at


# the operations, on a folder `work` with the store, source files, an archive and an Ollama store


def _store(work: Path) -> Store:
    """Impatient: a `close` that fails by injection leaves a lock held, which no real one does."""
    return Store(work / "store", patience=1)


def _create(work: Path) -> None:
    store = _store(work)
    with store.writing():
        base, adapter = store.put(work / "base.gguf"), store.put(work / "adapter.gguf", link=True)
        config = store.put(b'{"model_format":"gguf"}')
        layers = (Layer(media.MODEL, base.digest, base.size), Layer(media.ADAPTER, adapter.digest, adapter.size))
        store.write("new", Manifest(Layer(media.CONFIG, config.digest, config.size), layers))


def _update(work: Path) -> None:
    store = _store(work)
    store.write("old", _model(store, b"shared", b"a new layer"))


def _import(work: Path) -> None:
    with (work / "model.tar").open("rb") as file:
        archive.import_(_store(work), file)


def _from_ollama(work: Path) -> None:
    for one in ollama.import_models(_store(work), work / "ollama"):
        if one.error:
            raise one.error


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "create": _create,
    "update": _update,
    "import": _import,
    "ollama": _from_ollama,
    "copy": lambda work: _store(work).copy("old", "copied"),
    "rm": lambda work: _store(work).remove("old"),
    "pin": lambda work: _store(work).pin("old"),
    "gc": lambda work: collect(_store(work), grace=0),
    "verify": lambda work: verify(_store(work), repair=True, n_threads=1),
}


def _model(store: Store, *layers: bytes) -> Manifest:
    config = store.put(b"{}")
    stored = [store.put(data) for data in layers]
    return Manifest(
        Layer(media.CONFIG, config.digest, config.size),
        tuple(Layer(media.MODEL, put.digest, put.size) for put in stored),
    )


def prepare(work: Path) -> None:
    """A store with two models that share a layer, garbage, litter of a dead process and a rotten blob nobody needs."""
    work.mkdir()
    (work / "canary").write_bytes(b"untouched")
    (work / "base.gguf").write_bytes(os.urandom(300_000))
    (work / "adapter.gguf").write_bytes(os.urandom(5_000))
    _prepare_archive(work)
    _prepare_ollama(work / "ollama")
    store = _store(work)
    store.write("keep", _model(store, b"shared", b"only in keep"))
    store.write("old", _model(store, b"shared", b"only in old"))
    store.put(b"garbage")
    litter = store.staging / "99999999.1700000000.modelctl-create.00000000"
    litter.mkdir()
    (litter / "0").write_bytes(b"half a blob")
    rotten = store.blob(store.put(b"rotten").digest)
    rotten.chmod(0o644)
    rotten.write_bytes(b"Rotten")


def _prepare_archive(work: Path) -> None:
    other = Store(work / "other")
    other.write("imported", _model(other, b"shared", b"came in a tar"))
    with (work / "model.tar").open("wb") as file:
        archive.export(other, "imported", file)


def _prepare_ollama(folder: Path) -> None:
    (folder / "blobs").mkdir(parents=True)

    def layer(media_type: str, data: bytes) -> dict[str, object]:
        hex_digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / f"sha256-{hex_digest}").write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": len(data)}

    tag = folder / "manifests" / "registry.ollama.ai" / "library" / "stranded" / "latest"
    tag.parent.mkdir(parents=True)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": layer(media.CONFIG, b"{}"),
        "layers": [layer(media.MODEL, b"ollama's base"), layer(media.ADAPTER, b"ollama's adapter")],
    }
    tag.write_text(json.dumps(manifest))


# looking at a store without its own code


@dataclass
class State:
    refs: Names
    pins: Names
    problems: list[str]


def look(root: Path, *, rotten_ok: bool = True) -> State:
    """I1 and I2, and what every name points at."""
    problems = []
    for blob in sorted((root / "blobs").iterdir()):
        is_sound = f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}" == blob.name
        if not is_sound and not (rotten_ok and blob.read_bytes() == b"Rotten"):
            problems.append(f"I1: blob {blob.name[:19]} is damaged")
    state = State(_names(root / "refs", problems), _names(root / "pins", problems), problems)
    for name, digest in {**state.refs, **state.pins}.items():
        problems += _check_model(root, name, digest)
    return state


def _names(tree: Path, problems: list[str]) -> Names:
    found = {}
    for path in sorted(tree.rglob("*")) if tree.exists() else []:
        if path.is_file():
            try:
                found[str(path.relative_to(tree))] = json.loads(path.read_bytes())["digest"]
            except (ValueError, KeyError):
                problems.append(f"I3: name file {path} is torn")
    return found


def _check_model(root: Path, name: str, digest: str) -> Iterator[str]:
    try:
        manifest = json.loads((root / "blobs" / digest.replace(":", "-")).read_bytes())
    except (OSError, ValueError) as error:
        yield f"I2: manifest of {name}: {error}"
        return
    for layer in [manifest["config"], *manifest["layers"]]:
        blob = root / "blobs" / layer["digest"].replace(":", "-")
        if not blob.is_file() or blob.stat().st_size != layer["size"]:
            yield f"I2: {name} needs {blob.name[:19]}, which is missing or too short"


def outside(work: Path) -> dict[str, object]:
    """Everything beside the store: bytes, modes, times."""
    found: dict[str, object] = {}
    for path in sorted(work.rglob("*")):
        if path.is_file() and not path.is_relative_to(work / "store"):
            status = path.stat()
            found[str(path)] = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
    return found


# one point


@dataclass(frozen=True)
class Point:
    """The `ordinal`-th `syscall` of the process that runs `operation` fails."""

    operation: str
    syscall: str
    ordinal: int
    fault: str
    call: str  # the line of the trace, for people


def run_step(operation: str, work: Path) -> int:
    """What runs under strace: one operation. 0, REFUSED with an error a user understands, or BUG."""
    faulthandler.dump_traceback_later(HUNG_AFTER, exit=True)
    os.access(GO, os.F_OK)
    try:
        OPERATIONS[operation](work)
    except StoreError:
        return REFUSED
    except BaseException:
        import traceback

        traceback.print_exc()
        return BUG
    return 0


def strace(work: Path, operation: str, trace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    step = [sys.executable, "-S", "-B", __file__, "step", operation, str(work)]
    environ = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"}
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "300", "-o", str(trace), *options, *step]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


def points(template: Path, work: Path, operation: str) -> Iterator[Point]:
    """Every system call of the operation that names the store, times every fault."""
    trace = work.parent / "trace"
    _fresh(template, work)
    done = strace(work, operation, trace, "-e", "trace=%file,%desc")
    assert done.returncode == 0, done.stderr
    counts: Counter[str] = Counter()
    started = False
    for line in trace.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None:
            continue
        counts[match[1]] += 1
        started = started or GO in line
        if started and str(work / "store") in line:
            for fault in FAULTS:
                yield Point(operation, match[1], counts[match[1]], fault, line.split(maxsplit=1)[1])


def try_point(point: Point, template: Path, work: Path, after: State) -> list[str] | None:
    """The violations; None if the fault hit another call than it was meant for."""
    before = look(template / "store")
    _fresh(template, work)
    surroundings = outside(work)
    trace = work.parent / "trace"
    inject = f"inject={point.syscall}:{FAULTS[point.fault]}:when={point.ordinal}"
    done = strace(work, point.operation, trace, "-e", f"trace={point.syscall}", "-e", inject)
    if not _was_hit(trace, point, work):
        return None
    found = look(work / "store")
    problems = [*found.problems, *_judge(point, done, before, found, after)]
    if outside(work) != surroundings:
        problems.append("I6: something outside the store changed")
    return problems + _retry(point, work, after)


def _was_hit(trace: Path, point: Point, work: Path) -> bool:
    calls = [line for line in trace.read_text().splitlines() if re.match(rf"\d+ +{point.syscall}\(", line)]
    if len(calls) < point.ordinal:
        return False
    return str(work / "store") in calls[point.ordinal - 1]


def _judge(
    point: Point, done: subprocess.CompletedProcess[str], before: State, found: State, after: State
) -> Iterator[str]:
    seen, old, new = (found.refs, found.pins), (before.refs, before.pins), (after.refs, after.pins)
    if done.returncode == 0 and seen != new:
        yield "I4: success was reported, and nothing came of it"
    elif done.returncode == REFUSED and seen != old:
        yield "I4: failure was reported, and something came of it"
    elif seen not in (old, new):
        yield "I3: names point at neither the old nor the new"
    if "Timeout (" in done.stderr:
        yield f"it hung: {done.stderr}"
    if done.returncode not in (0, REFUSED) and point.fault != "KILL":
        yield f"an error nobody understands: {done.stderr.strip().splitlines()[-1:]}"


def _retry(point: Point, work: Path, after: State) -> list[str]:
    """I5, I7 and I8: the same again succeeds, and gc leaves exactly what is needed."""
    store = Store(work / "store", patience=1)
    try:
        if point.operation != "rm" or look(store.root).refs != after.refs:
            OPERATIONS[point.operation](work)
        collect(store, grace=0)
    except StoreError as error:
        return [f"I8: the retry failed: {error}"]
    found = look(store.root, rotten_ok=False)
    problems = list(found.problems)
    if (found.refs, found.pins) != (after.refs, after.pins):
        problems.append("I8: the retry came to something else")
    if len(store.list()) != len(found.refs) or store.damaged():
        problems.append("I7: a model became unusable")
    return problems + litter(store)


def litter(store: Store) -> list[str]:
    """What is left in the store and reachable from no name."""
    needed = {str(ref.digest) for ref in (*store.list(), *store.pinned())}
    needed |= {str(layer.digest) for ref in (*store.list(), *store.pinned()) for layer in ref.manifest}
    stored = {path.name.replace("-", ":") for path in store.blobs.folder.iterdir()}
    problems = [f"I8: orphan {digest[:19]}" for digest in stored - needed]
    return problems + [f"I5: litter {path}" for path in store.staging.iterdir()]


def _fresh(template: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work)


def _expected(template: Path, work: Path, operation: str) -> State:
    _fresh(template, work)
    OPERATIONS[operation](work)
    return look(work / "store")


def try_points(operations: list[str], every: int, folder: Path, say: Callable[[str], None] = print) -> tuple[int, int]:
    """(points tried, violations). Takes one point in `every`."""
    n_tried = n_violations = n_missed = 0
    template, work = folder / "template", folder / "work"
    prepare(template)
    for operation in operations:
        after = _expected(template, work, operation)
        chosen = list(points(template, work, operation))[::every]
        for point in chosen:
            problems = try_point(point, template, work, after)
            n_missed += problems is None
            n_tried += problems is not None
            n_violations += bool(problems)
            if problems:
                say(f"{point.operation}: {point.fault} at {point.syscall} #{point.ordinal}: {'; '.join(problems)}")
                say(f"    {point.call}")
        say(f"{operation}: {len(chosen)} points")
    say(f"{n_tried} points tried, {n_missed} missed, {n_violations} violations")
    return n_tried, n_violations


# the soak


def soak(seconds: float, folder: Path, n_workers: int = 16, say: Callable[[str], None] = print) -> list[str]:
    """16 writers of overlapping models, gc without grace, a reader, and a kill every 0.1 s. The violations."""
    from multiprocessing import get_context

    store, log = Store(folder / "store"), folder / "log"
    log.mkdir()
    keep = store.write("keep", _model(store, b"shared 0", b"shared 1"))
    fork = get_context("fork")
    jobs = {n: (_write_forever, (store.root, log / f"{n}")) for n in range(n_workers)}
    jobs |= {n_workers: (_gc_forever, (store.root, log)), n_workers + 1: (_read_forever, (store.root, log))}
    running = {n: fork.Process(target=target, args=args) for n, (target, args) in jobs.items()}
    for process in running.values():
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
    for process in running.values():
        process.kill()
        process.join()
    return _judge_soak(store, log, keep.digest, n_kills, say)


def _write_forever(root: Path, log: Path) -> None:
    """Creates and removes models of its own and two that everybody writes; says so before and after."""
    random.seed()
    store = Store(root)
    with log.open("a", buffering=1) as file:
        while True:
            name = random.choice(["everybody-0", "everybody-1", *(f"worker-{log.name}-{n}" for n in range(3))])
            layers = [b"shared %d" % n * 20_000 for n in random.sample(range(12), 3)]
            start = time.monotonic()
            try:
                if random.random() < 0.3:
                    print("try", name, "-", file=file)
                    store.remove(name)
                    print("did", name, "-", f"{time.monotonic() - start:.3f}", file=file)
                else:
                    with store.writing():
                        manifest = _model(store, *layers)
                        print("try", name, manifest.digest, file=file)
                        store.write(name, manifest)
                    print("did", name, manifest.digest, f"{time.monotonic() - start:.3f}", file=file)
            except NotFound:
                print("did", name, "-", f"{time.monotonic() - start:.3f}", file=file)
            except BaseException as error:
                print("bug", repr(error), file=file)


def _gc_forever(root: Path, log: Path) -> None:
    with (log / "gc").open("a", buffering=1) as file:
        while True:
            try:
                print("did", "gc", len(collect(Store(root), grace=0).blobs), file=file)
            except BaseException as error:
                print("bug", repr(error), file=file)


def _read_forever(root: Path, log: Path) -> None:
    store = Store(root)
    with (log / "reader").open("a", buffering=1) as file:
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


def main() -> int:
    if sys.argv[1:2] == ["step"]:  # before the imports, which thousands of steps would pay for
        return run_step(sys.argv[2], Path(sys.argv[3]))
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("points")
    every.add_argument("--ops", default=",".join(OPERATIONS))
    every.add_argument("--every", type=int, default=1)
    commands.add_parser("soak").add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.command == "points":
            return int(try_points(args.ops.split(","), args.every, Path(folder))[1] > 0)
        problems = soak(args.seconds, Path(folder))
    print("\n".join(problems[:20]))
    return int(bool(problems))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(main())
