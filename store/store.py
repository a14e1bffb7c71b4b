"""`Store`: content-addressed blobs and the names that point at them, safe against crashes and each other.

On disk, under one root:

    format                                         the layout's version; a newer one is read, not written
    blobs/sha256-<hex>                             immutable, read-only
    refs/<host>/<namespace>/<model>/<tag>          which manifest blob a name points at; the only mutable files
    pins/<host>/<namespace>/<model>/<tag>/<blob>   manifests kept for `name@sha256:…`
    staging/<session>/                             half-written files of live processes
    quarantine/                                    what `verify --repair` moved out of the way
    gate, lock, names                              see `locks`

Order makes it safe: every file is staged, synced, checked, renamed and its folder synced; blobs come before the
manifest that lists them, the manifest before the name; names go before blobs. A crash at any point leaves the old
state or the new one, and litter that gc takes away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import locks, media
from .blobs import READ_LIMIT, Blobs, Put, Source, Terms, make_folder, sync_folder
from .digest import Digest
from .errors import Corrupt, NotFound, ReadOnly, StoreError, os_errors
from .ingest import Progress
from .locks import Session, SharedHold, Waiting
from .manifest import MAX_BYTES, Layer, Manifest
from .names import ModelName
from .refs import Entry, Refs, Unreadable, missing

FORMAT = 1
PATIENCE = 60.0  # seconds a command waits for another one before it gives up and says whom it waited for
WRITTEN_BACK = 600.0  # seconds after which the kernel has written a folder's changes back by itself, many times over


@dataclass(frozen=True)
class Ref:
    """A name, as stored, and the manifest it points at. `modified`: seconds since the epoch."""

    name: ModelName
    digest: Digest
    manifest: Manifest
    modified: float


@dataclass(frozen=True)
class Damage:
    """A name that cannot be resolved, or (`name` is None) a folder of names that cannot be read: where, and why.
    `is_certain`: what lies there is wrong; else the disk did not let us see it, and may the next time."""

    name: ModelName | None
    path: Path
    problem: str
    is_certain: bool = False


class Store:
    """A store at `root`, which need not exist yet. Safe to use from several threads and processes.

    Every method either does all it says or raises a `StoreError` and changes nothing that can be seen.
    `waiting` is told, once per wait, what a command that takes longer than a second waits for.
    """

    def __init__(self, root: Path, *, patience: float = PATIENCE, waiting: Waiting = lambda message: None) -> None:
        self.root = Path(root).absolute()
        self.blobs = Blobs(self.root / "blobs")
        self.refs = Refs(self.root / "refs")
        self.pins = Refs(self.root / "pins", depth=5)
        self.staging = self.root / "staging"
        self.quarantine = self.root / "quarantine"
        self._patience = patience
        self._waiting = waiting
        self._writing = SharedHold(self._shared)

    # blobs

    def put(
        self,
        source: Source,
        *,
        expected: Digest | None = None,
        size: int | None = None,
        progress: Progress | None = None,
        link: bool = False,
    ) -> Put:
        """The bytes of `source` are stored, without implying that this call did it.

        A path is read once and copied as cheaply as the file system can; `link=True` allows a hard link where it has no
        reflinks, which ties the model to nobody ever changing that file in place. `expected` is the digest the bytes
        must have (`Mismatch` otherwise); if it is stored already, `source` is not read. `size`, if it is known, is how
        many bytes a stream must have.
        """
        with self.writing() as session:
            return self.blobs.adopt(source, session, Terms(expected, size, progress, link))

    def blob(self, digest: Digest) -> Path:
        """The absolute path of a stored blob. Raises `NotFound`, or `Corrupt` when it is not a regular file."""
        self.blobs.stat(digest)
        return self.blobs.path(digest)

    def has(self, digest: Digest) -> bool:
        return self.blobs.has(digest)

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """The bytes of a small blob, checked against its digest. Raises `NotFound` or `Corrupt`."""
        return self.blobs.read(digest, limit)

    # names

    def resolve(self, name: str | ModelName) -> Ref:
        """What the name points at; a pinned name (`tutor@sha256:…`) only ever that manifest.

        Raises `InvalidName`, `NotFound`, or `Corrupt`.
        """
        wanted = _parsed(name)
        if wanted.digest is not None:
            return self._resolve_pinned(wanted, wanted.digest)
        try:
            return self.load(self.refs, self.refs.locate(wanted))
        except NotFound:
            raise missing(wanted) from None

    def where(self, name: str | ModelName) -> Path:
        """The file that says what an unpinned name points at, if there is one. A change replaces it whole."""
        return self.refs.locate(_parsed(name))

    def write(self, name: str | ModelName, manifest: Manifest) -> Ref:
        """The name points at the manifest. Every blob it lists must be stored already, with the size it says."""
        with self.writing():
            self.check_layers(manifest)
            return self.point(name, self.put(manifest.to_bytes()).digest)

    def point(self, name: str | ModelName, manifest: Digest) -> Ref:
        """The name points at a manifest that is stored already, with all its blobs."""
        target = _parsed(name)
        if target.digest is not None:
            raise StoreError(f"{target.short} is pinned and cannot change", hint="leave out the @sha256:…")
        with self.writing() as session, self._changing_names():
            return self._point(self.refs, target, manifest, session)

    def remove(self, name: str | ModelName) -> None:
        """The name (or the pin, for a pinned name) is not in the store; its blobs are gc's business.

        Works on a damaged name. Raises `NotFound` if there is none.
        """
        wanted = _parsed(name)
        refs = self.pins if wanted.digest else self.refs
        with self.writing() as session, self._changing_names():
            path = refs.locate(wanted)
            try:
                refs.entry(path)
            except NotFound:
                raise missing(wanted) from None
            refs.remove(path, session)

    def copy(self, source: str | ModelName, destination: str | ModelName) -> Ref:
        """The destination points at the source's manifest."""
        with self.writing():
            found = self.resolve(source)
            self.check_layers(found.manifest)
            return self.point(destination, found.digest)

    def pin(self, name: str | ModelName) -> Ref:
        """What the name points at now stays, as `name@sha256:…`, whatever becomes of the name. `remove` undoes it."""
        with self.writing() as session, self._changing_names():
            found = self.resolve(name)
            return self._point(self.pins, replace(found.name, digest=found.digest), found.digest, session)

    def list(self) -> list[Ref]:
        """Every model, newest first. Damaged ones are left out; `damaged()` has them."""
        return _newest_first(self.all(self.refs))

    def survey(self) -> tuple[Sequence[Ref], Sequence[Damage]]:
        """What `list` and `damaged` give, in one pass instead of two."""
        found = [*self.all(self.refs)]
        damaged = (damage for damage in (*found, *self.all(self.pins)) if isinstance(damage, Damage))
        return _newest_first(found), tuple(damaged)

    def pinned(self) -> tuple[Ref, ...]:
        """Every pin, by name."""
        return tuple(found for found in self.all(self.pins) if isinstance(found, Ref))

    def damaged(self) -> tuple[Damage, ...]:
        """The names and pins that `list` and `pinned` leave out."""
        return tuple(found for refs in (self.refs, self.pins) for found in self.all(refs) if isinstance(found, Damage))

    def all(self, refs: Refs) -> Iterator[Ref | Damage]:
        """Every entry of one tree, whole or damaged."""
        for entry in refs.entries():
            if isinstance(entry, Unreadable):
                yield Damage(None, entry.path, entry.problem, entry.is_link)
                continue
            try:
                yield self._load(refs, entry)
            except NotFound:
                pass  # removed meanwhile
            except StoreError as error:
                yield Damage(entry.name, entry.path, error.message, isinstance(error, Corrupt))

    def load(self, refs: Refs, path: Path) -> Ref:
        """What a ref file points at. Raises `NotFound` if there is no such file, `Corrupt` for anything else."""
        entry = refs.entry(path)
        try:
            return self._load(refs, entry)
        except Corrupt as error:
            name = entry.name.short
            hint = f"create it again, or `modelctl rm {name}`"
            raise Corrupt(f"model {name!r} is damaged: {error.message}", hint=hint) from None

    def _load(self, refs: Refs, entry: Entry) -> Ref:
        """Its `Corrupt` does not say of which model, for those who list many."""
        digest = refs.read(entry.path).digest
        if entry.name.digest not in (None, digest):
            raise Corrupt(f"the file of the pin says {digest}")
        try:
            manifest = Manifest.from_bytes(self.read(digest, MAX_BYTES))
        except NotFound as error:
            if refs.read(entry.path).digest != digest:  # rewritten since, and the old manifest swept
                return self._load(refs, refs.entry(entry.path))
            raise Corrupt(error.message) from None
        return Ref(entry.name, digest, manifest, entry.modified)

    def check_layers(self, manifest: Manifest) -> None:
        """Raises `NotFound` or `Corrupt` for the first blob that is missing or has another size."""
        for layer in manifest:
            size = self.blobs.stat(layer.digest).st_size
            if size != layer.size:
                raise Corrupt(f"blob {layer.digest} has {size} bytes, its manifest says {layer.size}")

    def _point(self, refs: Refs, name: ModelName, digest: Digest, session: Session) -> Ref:
        """Reads the manifest first: once the name is written, nothing may fail."""
        data = self.read(digest, MAX_BYTES)
        manifest = Manifest.from_bytes(data)
        entry = refs.write(name, Layer(media.MANIFEST, digest, len(data)), session)
        return Ref(entry.name, digest, manifest, entry.modified)

    def _resolve_pinned(self, wanted: ModelName, digest: Digest) -> Ref:
        with suppress(NotFound, Corrupt):
            found = self.load(self.refs, self.refs.locate(wanted.unpinned))
            if found.digest == digest:
                return replace(found, name=replace(found.name, digest=digest))
        try:
            return self.load(self.pins, self.pins.locate(wanted))
        except NotFound:
            raise NotFound(f"no model {wanted.short!r}", hint="`modelctl pin` shows what is pinned") from None

    # locks

    def writing(self) -> AbstractContextManager[Session]:
        """Held around the puts and the write of one create: no gc runs meanwhile. Within it, calls join in."""
        return self._writing.held()

    @contextmanager
    def collecting(self) -> Iterator[Session]:
        """Held by gc: no writer lives meanwhile, so whatever others staged is litter."""
        with self._locked(exclusive=True), self._new_session() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Held around long reads: no gc runs meanwhile. A store that cannot be written has no gc to fear."""
        with ExitStack() as held:
            with suppress(ReadOnly):
                held.enter_context(self._shared())
            yield

    def settle(self) -> None:
        """Every change of a name is on disk. A process that was killed between changing one and syncing its folder
        leaves that to us: else the old name could come back after a power cut and find its blobs collected."""
        now = time.time()
        for refs in (self.refs, self.pins):
            for folder in refs.folders():
                with os_errors("sync", folder), suppress(FileNotFoundError):
                    if abs(now - folder.stat().st_mtime) < WRITTEN_BACK:
                        sync_folder(folder)

    @contextmanager
    def _shared(self) -> Iterator[Session]:
        with self._locked(exclusive=False), self._new_session() as session:
            yield session

    @contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[None]:
        with os_errors("open the store at", self.root):
            make_folder(self.root)
        self._check_format()
        with ExitStack() as held:
            with self._flocked("gate", exclusive):
                held.enter_context(self._flocked("lock", exclusive))
            yield

    def _changing_names(self) -> AbstractContextManager[None]:
        return self._flocked("names", exclusive=True)

    def _flocked(self, name: str, exclusive: bool) -> AbstractContextManager[None]:
        path, patience = self.root / name, self._patience
        return locks.flocked(path, exclusive=exclusive, patience=patience, blame=self._blame, waiting=self._waiting)

    def _blame(self) -> str:
        holders = [holder for _, holder, alive in locks.sessions(self.staging) if alive]
        others = [holder for holder in holders if holder.pid != os.getpid()]
        return " and ".join(map(str, others or holders)) or "another process"

    @contextmanager
    def _new_session(self) -> Iterator[Session]:
        session = Session(self.staging)
        try:
            # On a full disk removing must still work; whoever stages a file will say what is wrong.
            with suppress(OSError, StoreError):
                session.open()
                self._sweep()
            yield session
        finally:
            session.close()

    def _sweep(self) -> None:
        """What dead processes left. Their last act may have been to change a name, so that is settled first."""
        dead = locks.dead(self.staging)
        if dead:
            self.settle()
            locks.sweep(dead)

    def _check_format(self) -> None:
        path = self.root / "format"
        with os_errors("read", path):
            found = path.read_bytes()[:20].strip() if path.exists() else b""
            if not found:
                path.write_bytes(b"%d\n" % FORMAT)
        if found.isdigit() and int(found) > FORMAT:
            raise ReadOnly(
                f"the store at {self.root} has format {int(found)}, newer than {FORMAT}", hint="update modelctl"
            )


def _newest_first(found: Iterable[Ref | Damage]) -> list[Ref]:
    return sorted((ref for ref in found if isinstance(ref, Ref)), key=lambda ref: -ref.modified)


def _parsed(name: str | ModelName) -> ModelName:
    return name if isinstance(name, ModelName) else ModelName.parse(name)
