"""Who may change the store now: shared for writers, exclusive for gc; and who is to blame while it is taken.

All locks are `flock`s, so the kernel frees them when a process dies, however it dies. Three files, always taken in
this order: `gate` (held by gc while it waits, so that newcomers queue behind it and cannot starve it), `lock` (the
store itself), `names` (held for the milliseconds in which a name changes).

A holder that stages files or holds on for long has a session: a folder `staging/<pid>.<start>.<command>.<random>`
with an flock of its own. A session whose lock nobody holds belongs to a process that died: the next one sweeps it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import Locked, closing, os_errors

SPEAK_AFTER = 1.0  # seconds of waiting before the user hears why
_SESSION = re.compile(r"(\d+)\.(\d+)\.([\w-]+)\.[0-9a-f]+")

Waiting = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """A process that holds the store: its id, what it does, and since when (seconds since the epoch)."""

    pid: int
    command: str
    since: float

    def __str__(self) -> str:
        is_today = time.time() - self.since < 12 * 3600
        since = time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"`{self.command}` (process {self.pid}), since {since}"


class Session:
    """A writer's folder for half-written files, made when first needed and gone with the session."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._count = itertools.count()
        self.folder: Path | None = None
        self._lock = -1

    def open(self) -> Path:
        """The folder, made and locked. Raises `OSError`."""
        while self.folder is None:
            self._staging.mkdir(parents=True, exist_ok=True)
            folder = self._staging / f"{os.getpid()}.{int(time.time())}.{command()}.{os.urandom(4).hex()}"
            folder.mkdir()
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._lock).st_nlink:  # else a sweep came between mkdir and flock
                self.folder = folder
            else:
                os.close(self._lock)
        return self.folder

    def path(self) -> Path:
        """A fresh path to stage one file or folder at. Raises `StoreError`."""
        with os_errors("write in", self._staging):
            return self.open() / str(next(self._count))

    def close(self) -> None:
        if self.folder is not None:
            remove_tree(self.folder)
            with suppress(OSError):
                os.close(self._lock)
            self.folder = None


class SharedHold:
    """A writer's hold on the store, joined by nested calls and other threads of the process; the last one frees it."""

    def __init__(self, take: Callable[[], AbstractContextManager[Session]]) -> None:
        self._take = take
        self._mutex = threading.Lock()
        self._n_users = 0
        self._taken: list[ExitStack] = []
        self._session: Session | None = None

    @contextmanager
    def held(self) -> Iterator[Session]:
        session = self._join() or self._enter()
        try:
            yield session
        finally:
            self._leave()

    def _join(self) -> Session | None:
        with self._mutex:
            if self._n_users:
                self._n_users += 1
                return self._session
        return None

    def _enter(self) -> Session:
        """Waits outside the mutex, so that every thread has its own patience; two that come at once both hold it."""
        stack = ExitStack()
        session = stack.enter_context(self._take())
        with self._mutex:
            self._taken.append(stack)
            self._n_users += 1
            self._session = session
        return session

    def _leave(self) -> None:
        with self._mutex:
            self._n_users -= 1
            done = [] if self._n_users else self._taken
            if done:
                self._taken, self._session = [], None
        for stack in done:
            stack.close()


@contextmanager
def flocked(
    path: Path, *, exclusive: bool, patience: float, blame: Callable[[], str], waiting: Waiting
) -> Iterator[None]:
    """Holds an flock on `path`. Waits at most `patience` seconds, tells `waiting` whom `blame()` names after the first
    second, then raises `Locked` with the same words."""
    with os_errors("lock", path):
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with closing(fd):
        with os_errors("lock", path):
            _wait(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, patience, blame, waiting)
        yield


def _wait(fd: int, mode: int, patience: float, blame: Callable[[], str], waiting: Waiting) -> None:
    start, spoken = time.monotonic(), False
    for pause in itertools.chain((0.001, 0.002, 0.005, 0.01, 0.02), itertools.repeat(0.05)):
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - start
        if waited >= patience:
            raise Locked(f"the store is in use by {blame()}", hint=f"waited {waited:.0f} s; try again when it is done")
        if waited >= SPEAK_AFTER and not spoken:
            waiting(f"waiting for {blame()}")
            spoken = True
        time.sleep(pause)


def sessions(staging: Path) -> list[tuple[Path, Holder, bool]]:
    """Every session there is: its folder, whose it is, and whether that process still lives."""
    found = []
    try:
        folders = sorted(staging.iterdir())
    except OSError:
        return []
    for folder in folders:
        match = _SESSION.fullmatch(folder.name)
        if match:
            holder = Holder(int(match[1]), match[3].replace("-", " "), float(match[2]))
            found.append((folder, holder, _is_held(folder)))
    return found


def dead(staging: Path) -> list[Path]:
    """The sessions of processes that died."""
    return [folder for folder, _, alive in sessions(staging) if not alive]


def sweep(folders: Iterable[Path]) -> None:
    """Removes dead sessions and what they left half-written."""
    for folder in folders:
        with _try_lock(folder, fcntl.LOCK_EX) as free:
            if free:
                remove_tree(folder)


def _is_held(folder: Path) -> bool:
    with _try_lock(folder, fcntl.LOCK_SH) as free:
        return not free


@contextmanager
def _try_lock(folder: Path, mode: int) -> Iterator[bool]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or not ours to look into: leave it alone
        yield False
        return
    with closing(fd):
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free


def remove_tree(folder: Path) -> None:
    """As much of it as can be removed; what is left is litter for the next gc."""
    with suppress(OSError):  # rmtree ignores some errors only
        shutil.rmtree(folder, ignore_errors=True)


def command() -> str:
    """What this process was started as, as far as a file name can say: `modelctl-create`."""
    words = [Path(sys.argv[0]).name if sys.argv else "", *(word for word in sys.argv[1:2] if not word.startswith("-"))]
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9_]+", "", word)[:20] for word in words))) or "python"
