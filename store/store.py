"""`Store`: content-addressed blobs and the names that point at them, safe against crashes and each other.

On disk, under one root:

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

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from . import locks, media
from .blobs import READ_LIMIT, Blobs, Put, Source, make_folder
from .digest import Digest
from .errors import Corrupt, NotFound, ReadOnly, StoreError, os_errors
from .ingest import Progress
from .locks import Session, Waiting
from .manifest import MAX_BYTES, Layer, Manifest
from .names import ModelName
from .refs import Entry, Refs, missing

PATIENCE = 60.0  # seconds a command waits for another one before it gives up and says whom it waited for


@dataclass(frozen=True)
class Ref:
    """A name, as stored, and the manifest it points at. `modified`: seconds since the epoch."""

    name: ModelName
    digest: Digest
    manifest: Manifest
    modified: float


@dataclass(frozen=True)
class Damage:
    """A name that cannot be resolved, where it lies, and why."""

    name: ModelName
    path: Path
    problem: str


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
        self._session: ContextVar[Session | None] = ContextVar("session", default=None)

    # blobs

    def put(
        self, source: Source, *, expected: Digest | None = None, progress: Progress | None = None, link: bool = False
    ) -> Put:
        """The bytes of `source` are stored, without implying that this call did it.

        A path is read once and copied as cheaply as the file system can; `link=True` makes the blob a hard link to the
        file where possible, which ties the model to that file never being changed in place. `expected` is the digest
        the bytes must have (`Mismatch` otherwise); if it is stored already, `source` is not read.
        """
        with self.writing() as session:
            return self.blobs.adopt(source, session, expected=expected, progress=progress, link=link)

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
        for _ in range(3):  # a name that is rewritten while its old manifest is swept is there on the second look
            entry = self._entry(wanted)
            try:
                return self._load(entry)
            except NotFound as error:
                lost = error
        raise Corrupt(
            f"model {wanted.short!r} is damaged: {lost.message}", hint="run `modelctl verify`, or create it again"
        )

    def write(self, name: str | ModelName, manifest: Manifest) -> Ref:
        """The name points at the manifest. Every blob it lists must be stored already, with the size it says."""
        target = _parsed(name)
        if target.digest is not None:
            raise StoreError(f"{target.short} is pinned and cannot be written", hint="leave out the @sha256:…")
        with self.writing():
            self.check_layers(manifest)
            stored = self.put(manifest.to_bytes())
            return self.point(target, stored.digest)

    def remove(self, name: str | ModelName) -> None:
        """The name (or the pin, for a pinned name) is not in the store; its blobs are gc's business.

        Works on a damaged name. Raises `NotFound` if there is none.
        """
        wanted = _parsed(name)
        refs = self.pins if wanted.digest else self.refs
        with self.writing(), self._changing_names():
            path = refs.locate(wanted)
            if not path.is_file():
                raise missing(wanted)
            refs.remove(path)

    def copy(self, source: str | ModelName, destination: str | ModelName) -> Ref:
        """The destination points at the source's manifest."""
        with self.writing():
            found = self.resolve(source)
            self.check_layers(found.manifest)
            return self.point(_parsed(destination), found.digest)

    def list(self) -> list[Ref]:
        """Every model, newest first. Damaged ones are left out; `damaged()` has them."""
        return sorted((found for found in self._all() if isinstance(found, Ref)), key=lambda ref: -ref.modified)

    def damaged(self) -> tuple[Damage, ...]:
        """The names that `list` leaves out."""
        return tuple(found for found in self._all() if isinstance(found, Damage))

    def point(self, name: ModelName, manifest: Digest) -> Ref:
        """The name points at a manifest that is stored already."""
        with self.writing() as session, self._changing_names():
            size = self.blobs.stat(manifest).st_size
            path = self.refs.write(name.unpinned, Layer(media.MANIFEST, manifest, size), session)
            return self._load(self.refs.entry(path))

    def check_layers(self, manifest: Manifest) -> None:
        """Raises `NotFound` or `Corrupt` for the first blob that is missing or has another size."""
        for layer in manifest:
            size = self.blobs.stat(layer.digest).st_size
            if size != layer.size:
                raise Corrupt(f"blob {layer.digest} has {size} bytes, its manifest says {layer.size}")

    # locks

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Held around the puts and the write of one create: no gc runs meanwhile. Within it, calls join in."""
        session = self._session.get()
        if session is not None:
            yield session
            return
        with self._locked(exclusive=False), self._new_session() as session:
            token = self._session.set(session)
            try:
                yield session
            finally:
                self._session.reset(token)

    @contextmanager
    def collecting(self, patience: float | None = None) -> Iterator[None]:
        """Held by gc: no writer lives meanwhile, so whatever is staged is litter."""
        with self._locked(exclusive=True, patience=patience), self._new_session():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Held around long reads: no gc runs meanwhile. A store that cannot be written has no gc to fear."""
        with ExitStack() as held:
            try:
                held.enter_context(self._locked(exclusive=False))
                held.enter_context(self._new_session())
            except ReadOnly:
                pass
            yield

    @contextmanager
    def _locked(self, *, exclusive: bool, patience: float | None = None) -> Iterator[None]:
        with os_errors("open the store at", self.root):
            make_folder(self.root)
        patience = self._patience if patience is None else patience
        with ExitStack() as held:
            with ExitStack() as queueing:
                for name, stack in (("gate", queueing), ("lock", held)):
                    stack.enter_context(
                        locks.flocked(
                            self.root / name,
                            exclusive=exclusive,
                            patience=patience,
                            blame=self._blame,
                            waiting=self._waiting,
                        )
                    )
            yield

    @contextmanager
    def _new_session(self) -> Iterator[Session]:
        session = Session(self.staging)
        try:
            try:
                session.open()
                locks.sweep(self.staging)
            except OSError:
                pass  # a full disk: removing must still work, and whoever stages a file will say so
            yield session
        finally:
            session.close()

    @contextmanager
    def _changing_names(self) -> Iterator[None]:
        with locks.flocked(
            self.root / "names", exclusive=True, patience=self._patience, blame=self._blame, waiting=self._waiting
        ):
            yield

    def _blame(self) -> str:
        others = [holder for _, holder, alive in locks.sessions(self.staging) if alive]
        return " and ".join(map(str, others)) or "another process"

    # reading names

    def _entry(self, wanted: ModelName) -> Entry:
        path = self.refs.locate(wanted.unpinned)
        if wanted.digest is None:
            return _existing(self.refs, path, wanted)
        try:
            if self.refs.read(path).digest == wanted.digest:
                return _existing(self.refs, path, wanted)
        except StoreError:
            pass
        return _existing(self.pins, self.pins.locate(wanted), wanted)

    def _load(self, entry: Entry) -> Ref:
        digest = self.refs.read(entry.path).digest
        try:
            manifest = Manifest.from_bytes(self.read(digest, MAX_BYTES))
        except Corrupt as error:
            raise Corrupt(f"model {entry.name.short!r} is damaged: {error.message}", hint=error.hint) from None
        return Ref(entry.name, digest, manifest, entry.modified)

    def _all(self) -> Iterator[Ref | Damage]:
        for entry in self.refs.entries():
            try:
                yield self._load(entry)
            except NotFound as error:
                if entry.path.exists():
                    yield Damage(entry.name, entry.path, error.message)
            except StoreError as error:
                yield Damage(entry.name, entry.path, error.message)


def _parsed(name: str | ModelName) -> ModelName:
    return name if isinstance(name, ModelName) else ModelName.parse(name)


def _existing(refs: Refs, path: Path, wanted: ModelName) -> Entry:
    try:
        return refs.entry(path)
    except NotFound:
        raise missing(wanted) from None
