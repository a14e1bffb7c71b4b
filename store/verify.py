"""verify: reads every byte in the store and says what is wrong, and which models suffer from it."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import blobs
from .blobs import make_folder, sync_folder
from .digest import Digest
from .errors import Corrupt, NotFound, StoreError, closing, os_errors
from .store import Damage, Ref, Store

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_CHUNK = 1 << 20
_RESUME_WITHIN = 24 * 3600.0  # seconds for which an interrupted run's results count
_OURS = frozenset({"format", "blobs", "refs", "pins", "staging", "quarantine", "gate", "lock", "names", "verified"})


@dataclass(frozen=True)
class Problem:
    """Something wrong: where, what, which models need it, and, after a repair, where it lies now."""

    path: Path
    what: str
    models: tuple[str, ...] = ()
    moved_to: Path | None = None


@dataclass
class Report:
    """`n_resumed` of the `n_blobs` were checked by an interrupted run of the last day."""

    n_blobs: int = 0
    n_bytes: int = 0
    n_resumed: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(
    store: Store, *, repair: bool = False, resume: bool = True, progress: Progress | None = None, n_threads: int = 0
) -> Report:
    """Hashes every blob and loads every name. `repair` moves what is wrong to `quarantine/`, not what only could not be
    read; nothing is ever deleted.

    An interrupted run is taken up where it stopped unless `resume` is False. 0 threads: one a core, at most 4.
    """
    if not os.path.lexists(store.root):
        return Report()
    with os_errors("verify", store.root), store.reading(), _Journal(store.root / "verified", resume) as journal:
        check = _Check(store, repair, journal, progress)
        check.blobs(n_threads or min(4, os.cpu_count() or 1))
        check.names()
        check.foreign()
        journal.finish()
    return check.report


class _Check:
    def __init__(self, store: Store, repair: bool, journal: _Journal, progress: Progress | None) -> None:
        self.report = Report()
        self._store, self._repair, self._journal, self._progress = store, repair, journal, progress
        self._folder = store.quarantine / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._done = self._total = 0
        self._needed_by = _needed_by(store)
        self._lost: set[Digest] = set()  # blobs already reported

    def blobs(self, n_threads: int) -> None:
        found = list(self._named_blobs())
        self._total = self.report.n_bytes = sum(size for _, size in found)
        self.report.n_blobs = len(found)
        with ThreadPoolExecutor(n_threads) as pool:
            try:
                for digest, what, is_certain in pool.map(self._check_blob, sorted(found, key=lambda blob: -blob[1])):
                    if what:
                        self._lose(digest, what, is_certain)
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def names(self) -> None:
        """Names and pins that do not resolve, and blobs they need that are not there."""
        for refs in (self._store.refs, self._store.pins):
            for found in self._store.all(refs):
                if isinstance(found, Ref):
                    self._layers(found)
                else:
                    self._name(found)

    def foreign(self) -> None:
        """What is in the store and not the store's: nobody reads it, and gc leaves it."""
        for entry, digest in self._store.blobs.names():
            if digest is None:
                self._found(Path(entry.path), "a foreign file: no blob has such a name")
        for refs in (self._store.refs, self._store.pins):
            for path in refs.foreign():
                self._found(path, "a foreign entry: no model can have that name")
        for path in sorted(self._store.root.iterdir()):
            if path.name not in _OURS:
                self._found(path, "a foreign file in the store's folder")

    def _named_blobs(self) -> Iterator[tuple[Digest, int]]:
        for entry, digest in self._store.blobs.names():
            if digest is None:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # quarantined by another verify
                continue
            if stat.S_ISREG(status.st_mode):
                yield digest, status.st_size
            else:
                self._lose(digest, f"{blobs.kind(status.st_mode)} where a blob should be")

    def _check_blob(self, blob: tuple[Digest, int]) -> tuple[Digest, str, bool]:
        """(digest, what is wrong with it, if anything, and whether that is certain)."""
        digest, size = blob
        path = self._store.blobs.path(digest)
        if self._journal.has(path, digest):
            self._advance(size, resumed=1)
            return digest, "", True
        try:
            found = self._hash(path)
        except FileNotFoundError:  # quarantined by another verify
            return digest, "", True
        except OSError as error:
            return digest, f"cannot be read: {error.strerror}", False
        if self._stopped.is_set():
            return digest, "", True
        if found != digest.hex:
            return digest, f"damaged: its bytes hash to sha256:{found}", True
        self._journal.add(path, digest)
        return digest, "", True

    def _hash(self, path: Path) -> str:
        sha = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK))
        with closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            while not self._stopped.is_set() and (n := os.readv(fd, [buffer])):
                sha.update(buffer[:n])
                self._advance(n)
        return sha.hexdigest()

    def _advance(self, n: int, resumed: int = 0) -> None:
        with self._mutex:
            self.report.n_resumed += resumed
            self._done += n
            if self._progress:
                self._progress(self._done, self._total)

    def _layers(self, ref: Ref) -> None:
        for layer in ref.manifest:
            if layer.digest in self._lost:
                continue
            path = self._store.blobs.path(layer.digest)
            try:
                size = self._store.blobs.stat(layer.digest).st_size
            except NotFound:
                self._lose(layer.digest, "missing")
            except StoreError as error:
                self._lose(layer.digest, error.message, isinstance(error, Corrupt))
            else:
                if size != layer.size:
                    what = f"has {size} bytes where the manifest of {ref.name.short} says {layer.size}"
                    self.report.problems.append(Problem(path, what, (ref.name.short,)))

    def _name(self, damage: Damage) -> None:
        models = (damage.name.short,) if damage.name else ()
        self._found(damage.path, damage.problem, models, damage.is_certain)

    def _lose(self, digest: Digest, what: str, is_certain: bool = True) -> None:
        self._lost.add(digest)
        self._found(self._store.blobs.path(digest), what, tuple(sorted(self._needed_by.get(digest, ()))), is_certain)

    def _found(self, path: Path, what: str, models: tuple[str, ...] = (), is_certain: bool = True) -> None:
        moved_to = _quarantine(self._store, self._folder, path) if self._repair and is_certain else None
        self.report.problems.append(Problem(path, what, models, moved_to))


class _Journal:
    """Which blobs an interrupted verify found good: lines of digest, size, mtime and ctime in one file."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._good = self._load() if resume else set()
        self._fd = -1

    def __enter__(self) -> _Journal:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if self._good else os.O_TRUNC)
        with suppress(OSError):  # a store that cannot be written is verified from the start each time
            self._fd = os.open(self._path, flags, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)

    def has(self, path: Path, digest: Digest) -> bool:
        return bool(self._good) and self._line(path, digest) in self._good

    def add(self, path: Path, digest: Digest) -> None:
        with self._mutex, suppress(OSError):
            if self._fd >= 0:
                os.write(self._fd, f"{self._line(path, digest)}\n".encode())

    def finish(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _load(self) -> set[str]:
        try:
            if time.time() - self._path.stat().st_mtime > _RESUME_WITHIN:
                return set()
            return set(self._path.read_text(encoding="ascii", errors="replace").splitlines())
        except OSError:
            return set()

    def _line(self, path: Path, digest: Digest) -> str:
        status = path.lstat()
        return f"{digest.hex} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _needed_by(store: Store) -> dict[Digest, set[str]]:
    """The names of the models that need each blob. A damaged model's manifest counts as needed by it."""
    needed: dict[Digest, set[str]] = {}
    for refs in (store.refs, store.pins):
        for found in store.all(refs):
            if isinstance(found, Ref):
                for digest in (found.digest, *(layer.digest for layer in found.manifest)):
                    needed.setdefault(digest, set()).add(found.name.short)
            elif found.name is not None:
                with suppress(StoreError):
                    needed.setdefault(refs.read(found.path).digest, set()).add(found.name.short)
    return needed


def _quarantine(store: Store, folder: Path, path: Path) -> Path | None:
    """Moves `path`, whatever it is, to the same place below `folder`; None if it is not there."""
    with os_errors("quarantine", path):
        if not os.path.lexists(path):
            return None
        target = folder / path.relative_to(store.root)
        make_folder(target.parent)
        path.rename(target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    return target
