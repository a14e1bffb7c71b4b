"""Injects faults into the store and checks after each that nothing is lost, torn or left behind.

    store_faults.py points [--ops create,rm] [--every N]   SIGKILL, EIO and ENOSPC at every system call on the store
    store_faults.py disks  [--ops create,rm] [--every N]   a 1 MB disk with every amount of room, and RLIMIT_FSIZE
    store_faults.py order  [--ops create,rm]               what is synced before and after each rename
    store_faults.py soak   [--seconds 60]                  16 writers, a gc loop and random kills

`points` and `order` need strace, `disks` needs `unshare`. Each point runs one operation in a process of its own on a
copy of a small store, hurts it once, then checks the eight invariants:

    I1 every blob hashes to its name                    I5 the store works without any manual step
    I2 every manifest parses, all its blobs are there   I6 nothing outside the store changed
    I3 a name points at the old or the new manifest     I7 no other model became unusable
    I4 success survives, failure leaves nothing seen    I8 the same command, retried, succeeds
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "scripts")]

from store_checks import TRACED, Order, State, litter, look, outside  # noqa: E402
from store_samples import OPERATIONS, prepare  # noqa: E402

from modelctl.store import Store, StoreError  # noqa: E402
from modelctl.store.collect import collect  # noqa: E402

FAULTS = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
GO = "/store-faults-go"  # looked up right before the operation, to find its place in the trace
REFUSED, BUG = 1, 3
HUNG_AFTER = 30  # seconds
PAGE = 4096
LIMITS = [0, *(1 << n for n in range(20))]  # bytes in a file
NEEDS_NO_ROOM = ("rm", "gc")  # what one types when the disk is full

Done = subprocess.CompletedProcess[str]

# one point


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


def run(operation: str, work: Path, *before: str) -> Done:
    """The operation in a process of its own, behind the command `before`."""
    step = [sys.executable, "-S", "-B", __file__, "step", operation, str(work)]
    environ = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"}
    return subprocess.run([*before, *step], env=environ, capture_output=True, text=True, timeout=120, check=False)


def strace(work: Path, operation: str, trace: Path, *options: str) -> Done:
    return run(operation, work, "strace", "-f", "-y", "-s", "300", "-o", str(trace), *options)


@dataclass
class Trial:
    """Hurts operations on copies of one store, and keeps count."""

    template: Path
    work: Path
    say: Callable[[str], None] = print
    n_tried: int = 0
    n_violations: int = 0
    _after: dict[str, State] = field(default_factory=dict)  # what each operation leads to when nothing goes wrong

    def refresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)

    def after(self, operation: str) -> State:
        if operation not in self._after:
            self.refresh()
            OPERATIONS[operation](self.work)
            self._after[operation] = look(self.work / "store")
        return self._after[operation]

    def hurt(self, what: str, operation: str, act: Callable[[], Done], heal: Callable[[], object] = int) -> Done:
        """Has `act` run the operation in some bad way on a fresh copy; `heal` ends what ails it before the retry."""
        before, after = look(self.template / "store"), self.after(operation)
        self.refresh()
        surroundings = outside(self.work)
        done = act()
        found = look(self.work / "store")
        problems = [*found.problems, *_judge(done, before, found, after)]
        if outside(self.work) != surroundings:
            problems.append("I6: something outside the store changed")
        heal()
        self._count(f"{operation}: {what}", problems + _retry(operation, self.work, after))
        return done

    def _count(self, what: str, problems: list[str]) -> None:
        self.n_tried += 1
        self.n_violations += bool(problems)
        if problems:
            self.say(f"{what}: {'; '.join(problems)}")


def _judge(done: Done, before: State, found: State, after: State) -> Iterator[str]:
    seen, old, new = (found.refs, found.pins), (before.refs, before.pins), (after.refs, after.pins)
    if done.returncode == 0 and seen != new:
        yield "I4: success was reported, and nothing came of it"
    elif done.returncode == REFUSED and seen != old:
        yield "I4: failure was reported, and something came of it"
    elif seen not in (old, new):
        yield "I3: names point at neither the old nor the new"
    if "Timeout (" in done.stderr:
        yield f"it hung: {done.stderr}"
    if done.returncode not in (0, REFUSED, -signal.SIGKILL):
        yield f"an error nobody understands: {done.stderr.strip().splitlines()[-1:]}"


def _retry(operation: str, work: Path, after: State) -> list[str]:
    """I5, I7 and I8: the same again succeeds, and gc leaves exactly what is needed."""
    store = Store(work / "store", patience=1)
    try:
        if operation != "rm" or look(store.root).refs != after.refs:
            OPERATIONS[operation](work)
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


# a fault at every system call


@dataclass(frozen=True)
class Point:
    """The `ordinal`-th `syscall` of the process that runs the operation fails."""

    syscall: str
    ordinal: int
    fault: str
    call: str  # the line of the trace, for people


def points(trial: Trial, operation: str) -> Iterator[Point]:
    """Every system call of the operation that names the store, times every fault."""
    trace = trial.work.parent / "trace"
    trial.refresh()
    done = strace(trial.work, operation, trace, "--seccomp-bpf", "-e", "trace=%file,%desc")
    assert done.returncode == 0, done.stderr
    counts: Counter[str] = Counter()
    started, main = False, ""
    for line in trace.read_text().splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:
            continue
        main, syscall = main or match[1], match[2]
        counts[syscall] += match[1] == main
        started = started or GO in line
        if started and str(trial.work / "store") in line:
            assert match[1] == main, f"a call on another thread, which strace counts by itself: {line}"
            for fault in FAULTS:
                yield Point(syscall, counts[syscall], fault, line.split(maxsplit=1)[1])


def try_points(operations: list[str], every: int, folder: Path, say: Callable[[str], None] = print) -> tuple[int, int]:
    """(points tried, violations). Takes one point in `every`."""
    prepare(folder / "template")
    trial = Trial(folder / "template", folder / "work", say)
    n_missed = 0
    for operation in operations:
        chosen = list(points(trial, operation))[::every]
        n_missed += sum(try_point(trial, operation, point) is None for point in chosen)
        say(f"{operation}: {len(chosen)} points")
    n_tried = trial.n_tried - n_missed
    say(f"{n_tried} points tried, {n_missed} missed, {trial.n_violations} violations")
    return n_tried, trial.n_violations


def try_point(trial: Trial, operation: str, point: Point) -> Done | None:
    """None if the fault hit another call than it was meant for."""
    trace = trial.work.parent / "trace"
    inject = f"inject={point.syscall}:{FAULTS[point.fault]}:when={point.ordinal}"
    faster = () if point.fault == "KILL" else ("--seccomp-bpf",)  # which loses injected signals
    options = (*faster, "-e", f"trace={point.syscall}", "-e", inject)
    what = f"{point.fault} at {point.syscall} #{point.ordinal}, {point.call}"
    done = trial.hurt(what, operation, lambda: strace(trial.work, operation, trace, *options))
    return done if _was_hit(trace, trial.work / "store") else None


def _was_hit(trace: Path, store: Path) -> bool:
    """Whether the call that strace failed, or that the process did not return from, names the store."""
    hit = [line for line in _whole_lines(trace) if line.endswith(("(INJECTED)", "= ?"))]
    return len(hit) == 1 and str(store) in hit[0]


def _whole_lines(trace: Path) -> Iterator[str]:
    """Calls that a call of another thread cut in two are put together again."""
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        pid = line.split()[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line
        else:
            yield begun.pop(pid) + line if "resumed>" in line else line


# full disks


def try_disks(operations: list[str], every: int, folder: Path, say: Callable[[str], None] = print) -> tuple[int, int]:
    """(points tried, violations). Needs a mount namespace of its own, for the disk of 1 MB."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    prepare(folder / "template")
    trial = Trial(folder / "template", disk / "work", say)
    for operation in operations:
        n_before = trial.n_tried
        _fill_up(trial, operation, every, disk / "filler")
        n_full = trial.n_tried - n_before
        for limit in LIMITS[::every]:
            before = ("prlimit", f"--fsize={limit}")
            trial.hurt(f"RLIMIT_FSIZE {limit}", operation, lambda: run(operation, trial.work, *before))  # noqa: B023
        say(f"{operation}: {n_full} amounts of room, {trial.n_tried - n_before - n_full} limits")
    say(f"{trial.n_tried} points tried, {trial.n_violations} violations")
    return trial.n_tried, trial.n_violations


def _fill_up(trial: Trial, operation: str, every: int, filler: Path) -> None:
    """With 0, 1, 2, … times `every` pages free, until it has succeeded four times in a row."""
    n_succeeded = n_free = 0

    def act() -> Done:
        _leave(n_free, filler)
        done = run(operation, trial.work)
        if done.returncode and operation in NEEDS_NO_ROOM:
            trial.say(f"{operation} needs room: {done.stderr}")
            trial.n_violations += 1
        return done

    while n_succeeded < 4:
        done = trial.hurt(f"{n_free} pages free", operation, act, filler.unlink)
        n_succeeded = n_succeeded + 1 if done.returncode == 0 else 0
        n_free += every


def _leave(n_free: int, filler: Path) -> None:
    """Fills the disk up, but for so many pages."""
    with filler.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(PAGE)) == PAGE:
                pass
        except OSError:
            out.truncate(max(0, out.tell() - n_free * PAGE))


# the order of the calls


def try_order(operations: list[str], folder: Path, say: Callable[[str], None] = print) -> tuple[int, int]:
    """(renames seen, violations)."""
    prepare(folder / "template")
    trial = Trial(folder / "template", folder / "work", say)
    n_renames = n_violations = 0
    for operation in operations:
        trial.refresh()
        order, trace = Order(trial.work / "store"), folder / "trace"
        done = strace(trial.work, operation, trace, "-e", f"trace={TRACED}")
        assert done.returncode == 0, done.stderr
        for line in trace.read_text().splitlines():
            order.feed(line)
        problems = order.end()
        say("\n".join([f"{operation}: {order.n_renames} renames", *problems]))
        n_renames, n_violations = n_renames + order.n_renames, n_violations + len(problems)
    return n_renames, n_violations


def main() -> int:
    if sys.argv[1:2] == ["step"]:  # before the imports, which thousands of steps would pay for
        return run_step(sys.argv[2], Path(sys.argv[3]))
    import tempfile

    args = _arguments()
    operations = args.ops.split(",") if "ops" in args else []
    if args.command == "disks" and not args.mounting:
        step = [sys.executable, __file__, *sys.argv[1:], "--mounting"]
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", *step])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if args.command == "points":
            n_violations = try_points(operations, args.every, folder)[1]
        elif args.command == "disks":
            n_violations = try_disks(operations, args.every, folder)[1]
        elif args.command == "order":
            n_violations = try_order(operations, folder)[1]
        else:
            from store_soak import soak

            n_violations = len(soak(args.seconds, folder))
    return int(n_violations > 0)


def _arguments() -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("points", "disks", "order"):
        commands.add_parser(name).add_argument("--ops", default=",".join(OPERATIONS))
    for name in ("points", "disks"):
        commands.choices[name].add_argument("--every", type=int, default=1)
    commands.choices["disks"].add_argument("--mounting", action="store_true", help=argparse.SUPPRESS)
    commands.add_parser("soak").add_argument("--seconds", type=float, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(main())
