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
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import blobs
from .blobs import make_folder, sync_folder
from .digest import Digest
from .errors import Corrupt, NotFound, StoreError, closing, os_errors
from .journal import Journal
from .refs import Refs
from .store import Damage, Ref, Store

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_CHUNK = 1 << 20
_OURS = frozenset({"format", "blobs", "refs", "pins", "staging", "quarantine", "gate", "lock", "names", "verified"})


@dataclass(frozen=True)
class Problem:
    """Something wrong: where, what, which models need it, and, after a repair, where it lies now."""

    path: Path
    what: str
    models: tuple[str, ...] = ()
    moved_to: Path | None = None


Suspect = tuple[Problem, Callable[[], bool] | None]  # with what tells if it is wrong for certain; None: it stays


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
    with os_errors("verify", store.root), Journal(store.root / "verified", resume) as journal:
        check = _Check(store, journal, progress)
        with store.reading():
            check.blobs(n_threads or min(4, os.cpu_count() or 1))
            check.names()
            check.foreign()
        if repair and check.suspects:
            with store.collecting():  # nobody heals or uses what is about to be moved
                check.report.problems = list(_repaired(store, check.suspects))
        journal.finish()
    return check.report


def _repaired(store: Store, suspects: list[Suspect]) -> Iterator[Problem]:
    """Looks at each again, for it may have been healed meanwhile, and moves what is wrong for certain."""
    folder = store.quarantine / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    for problem, is_wrong in suspects:
        is_certain = is_wrong is not None and is_wrong()
        yield replace(problem, moved_to=_quarantine(store, folder, problem.path)) if is_certain else problem


class _Check:
    def __init__(self, store: Store, journal: Journal, progress: Progress | None) -> None:
        self.report = Report()
        self.suspects: list[Suspect] = []
        self._store, self._journal, self._progress = store, journal, progress
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
                for digest, what in pool.map(self._check_blob, sorted(found, key=lambda blob: -blob[1])):
                    if what:
                        self._lose(digest, what)
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
                    self._name(refs, found)

    def foreign(self) -> None:
        """What is in the store and not the store's: nobody reads it, and gc leaves it."""
        for entry, digest in self._store.blobs.names():
            if digest is None:
                self._found(Path(entry.path), "a foreign file: no blob has such a name", _always)
        for refs in (self._store.refs, self._store.pins):
            for path in refs.foreign():
                self._found(path, "a foreign entry: no model can have that name", _always)
        for path in sorted(self._store.root.iterdir()):
            if path.name not in _OURS:
                self._found(path, "a foreign file in the store's folder", _always)

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

    def _check_blob(self, blob: tuple[Digest, int]) -> tuple[Digest, str]:
        """(digest, what is wrong with it, if anything)."""
        digest, size = blob
        path = self._store.blobs.path(digest)
        if self._journal.has(path, digest):
            self._advance(size, resumed=1)
            return digest, ""
        try:
            found = self._hash(path)
        except FileNotFoundError:  # quarantined by another verify
            return digest, ""
        except OSError as error:
            return digest, f"cannot be read: {error.strerror}"
        if self._stopped.is_set():
            return digest, ""
        if found != digest.hex:
            return digest, f"damaged: its bytes hash to sha256:{found}"
        self._journal.add(path, digest)
        return digest, ""

    def _is_bad(self, digest: Digest) -> bool:
        """Whether the blob is certainly no good; a disk that cannot read it now may read it the next time."""
        path = self._store.blobs.path(digest)
        try:
            self._store.blobs.stat(digest)
            return self._hash(path) != digest.hex
        except Corrupt:
            return True
        except (OSError, StoreError):
            return False

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
            try:
                size = self._store.blobs.stat(layer.digest).st_size
            except StoreError as error:
                self._lose(layer.digest, "missing" if isinstance(error, NotFound) else error.message)
            else:
                if size != layer.size:
                    what = f"has {size} bytes where the manifest of {ref.name.short} says {layer.size}"
                    self._found(self._store.blobs.path(layer.digest), what, None, (ref.name.short,))

    def _name(self, refs: Refs, damage: Damage) -> None:
        models = (damage.name.short,) if damage.name else ()
        self._found(damage.path, damage.problem, lambda: _is_torn(self._store, refs, damage), models)

    def _lose(self, digest: Digest, what: str) -> None:
        self._lost.add(digest)
        models = tuple(sorted(self._needed_by.get(digest, ())))
        self._found(self._store.blobs.path(digest), what, lambda: self._is_bad(digest), models)

    def _found(self, path: Path, what: str, is_wrong: Callable[[], bool] | None, models: tuple[str, ...] = ()) -> None:
        problem = Problem(path, what, models)
        self.report.problems.append(problem)
        self.suspects.append((problem, is_wrong))


def _is_torn(store: Store, refs: Refs, damage: Damage) -> bool:
    """Whether the name is certainly no good."""
    if damage.name is None:
        return damage.is_certain
    try:
        store.load(refs, damage.path)
    except Corrupt:
        return True
    except StoreError:
        pass
    return False


def _always() -> bool:
    return True


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
