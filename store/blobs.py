"""Blobs: immutable files named by the SHA-256 of their bytes."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import ingest
from .digest import Digest
from .errors import BadSource, Corrupt, InvalidDigest, Mismatch, NotFound, StoreError, closing, os_errors
from .ingest import Progress
from .locks import Session

READ_LIMIT = 64 << 20
SMALL = 1 << 20  # bytes; below, copying a file costs no more than looking for its twin
_SAMPLE = 64 << 10

Source = Path | bytes | BinaryIO


@dataclass(frozen=True)
class Put:
    """What a `put` came to: the bytes are stored. `existed`: they already were."""

    digest: Digest
    size: int
    existed: bool


class Blobs:
    """The folder of blobs. The only place that makes a path from a digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: Digest) -> Path:
        """Where the blob lies, if it is there or not."""
        return self.folder / digest.filename

    def _place(self, digest: Digest) -> str:
        """The same as text: a `Path` takes longer to make than the file to open, and a list opens thousands."""
        return f"{self.folder}/{digest.filename}"

    def stat(self, digest: Digest) -> os.stat_result:
        """Raises `NotFound`, or `Corrupt` when something else lies in its place. Never follows a link."""
        path = self._place(digest)
        with os_errors("look at", path):
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                raise NotFound(f"no blob {digest} in {self.folder}") from None
        if not stat.S_ISREG(found.st_mode):
            raise Corrupt(f"{path} is {kind(found.st_mode)}, not a blob", hint="see `modelctl verify --repair`")
        return found

    def has(self, digest: Digest) -> bool:
        return self._is_stored(digest, None)

    @contextmanager
    def open(self, digest: Digest) -> Iterator[BinaryIO]:
        """The blob for reading. Raises `NotFound` or `Corrupt`."""
        with closing(self._open(digest)) as fd:
            yield os.fdopen(fd, "rb", buffering=0, closefd=False)

    def _open(self, digest: Digest) -> int:
        self.stat(digest)
        path = self._place(digest)
        with os_errors("read", path):
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """All bytes of a small blob, checked against its digest. Raises `NotFound` or `Corrupt`."""
        with closing(self._open(digest)) as fd, os_errors("read", self._place(digest)):
            size = os.fstat(fd).st_size
            if size > limit:
                raise Corrupt(f"blob {digest} has more than the {limit} bytes that make sense here")
            data = os.read(fd, size)
        if Digest.of(data) != digest:
            raise Corrupt(f"blob {digest} is damaged: its bytes do not hash to its name", hint="run `modelctl verify`")
        return data

    def names(self) -> Iterator[tuple[os.DirEntry[str], Digest | None]]:
        """Every entry of the folder, with its digest if it is named like a blob."""
        with os_errors("list", self.folder):
            try:
                entries = os.scandir(self.folder)
            except FileNotFoundError:
                return
            with entries:
                for entry in entries:
                    yield entry, digest_of(entry.name)

    def remove(self, digest: Digest) -> None:
        """The blob is not there."""
        path = self.path(digest)
        with os_errors("remove", path):
            path.unlink(missing_ok=True)

    def renew(self, digest: Digest) -> None:
        """Makes the blob young again for gc's grace period. Its ctime, by a chmod that changes nothing: a blob may
        share its inode with a file of the user's, whose mtime is not ours to touch."""
        path = self.path(digest)
        with suppress(OSError):  # another user's blob; the lock we hold protects it meanwhile
            path.chmod(stat.S_IMODE(path.lstat().st_mode))

    def adopt(self, source: Source, session: Session, terms: Terms) -> Put:
        """Stores the bytes of `source`: staged, hashed, synced, checked, renamed, and the folder synced."""
        if isinstance(source, Path):
            with os_errors("read", source), ingest.open_regular(source) as fd:
                return self._adopt_file(_Incoming(source, fd), session, terms)
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        if terms.expected is not None and self._is_stored(terms.expected, terms.size):
            return self._reuse(terms.expected)
        with os_errors("store a blob in", self.folder), _create(session) as (staged, out):
            digest = ingest.copy_stream(source, out, terms.size, terms.progress)
            return self._publish(staged, out, digest, terms)

    def _adopt_file(self, file: _Incoming, session: Session, terms: Terms) -> Put:
        if terms.expected is not None and self._is_stored(terms.expected, file.size):
            return self._reuse(terms.expected)
        with os_errors(f"store {file.path} in", self.folder):
            if file.size >= SMALL and self._has_twin(file):
                digest = file.check(ingest.hash_file(file.fd, terms.progress))
                if self._is_stored(digest, file.size):
                    return self._reuse(digest)
            return self._stage(file, session, terms)

    def _stage(self, file: _Incoming, session: Session, terms: Terms) -> Put:
        with _create(session) as (staged, out):
            if ingest.clone(file.fd, out):
                digest = ingest.hash_file(out, terms.progress)
            elif terms.link and _link(file, linked := session.path()):
                is_ours = file.path.is_relative_to(staged.parent)
                with closing(os.open(linked, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                    digest = file.check(ingest.hash_file(fd, terms.progress))
                    return self._publish(linked, fd, digest, terms, keep_mode=not is_ours)
            else:
                digest = file.check(ingest.copy_file(file.fd, out, terms.progress))
            return self._publish(staged, out, digest, terms)

    def _reuse(self, digest: Digest) -> Put:
        size = self.stat(digest).st_size
        self.renew(digest)
        return Put(digest, size, existed=True)

    def _publish(self, staged: Path, fd: int, digest: Digest, terms: Terms, keep_mode: bool = False) -> Put:
        """From here on the blob is either whole, synced and under its name, or not there."""
        if terms.expected not in (None, digest):
            raise Mismatch(f"expected {terms.expected}, got {digest}: the bytes are not what was promised")
        size = os.fstat(fd).st_size
        if self._is_stored(digest, size):
            return self._reuse(digest)
        if not keep_mode:  # a linked file is the user's as well
            os.fchmod(fd, 0o444)
        os.fsync(fd)
        make_folder(self.folder)
        try:
            staged.rename(self.path(digest))
        except IsADirectoryError:
            self.stat(digest)  # says what lies there and how to get rid of it
            raise
        sync_folder(self.folder)
        return Put(digest, size, existed=False)

    def _is_stored(self, digest: Digest, size: int | None) -> bool:
        """Whether the blob is there, with the size it must have if that is known; what is cut short or no regular file
        gets replaced."""
        try:
            found = self.stat(digest).st_size
        except (NotFound, Corrupt):
            return False
        return size is None or found == size

    def _has_twin(self, file: _Incoming) -> bool:
        """Whether some blob has the file's size and the same bytes at five places: then it is hashed before anything is
        copied, so that storing a base again writes nothing. Fine-tunes share a size, not these bytes."""
        for entry, digest in self.names():
            if digest and entry.is_file(follow_symlinks=False) and self._is_alike(file, entry, digest):
                return True
        return False

    def _is_alike(self, file: _Incoming, entry: os.DirEntry[str], digest: Digest) -> bool:
        places = [file.size * quarter // 4 for quarter in range(4)] + [file.size - _SAMPLE]
        try:
            if entry.stat(follow_symlinks=False).st_size != file.size:
                return False
            with self.open(digest) as blob:
                return all(os.pread(file.fd, _SAMPLE, at) == os.pread(blob.fileno(), _SAMPLE, at) for at in places)
        except (OSError, StoreError):
            return False


@dataclass(frozen=True)
class Terms:
    """What a `put` asks for, see `Store.put`."""

    expected: Digest | None = None
    size: int | None = None
    progress: Progress | None = None
    link: bool = False


class _Incoming:
    """A regular file on its way in, as it was when it was opened."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self._before = os.fstat(fd)
        self.size = self._before.st_size

    def check(self, digest: Digest) -> Digest:
        """The digest, provided that nobody wrote to the file while it was read."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise BadSource(f"{self.path} changed while it was read", hint="try again when nobody writes to it")
        return digest


def digest_of(filename: str) -> Digest | None:
    """The digest a blob of this file name has; None for a foreign file."""
    try:
        return Digest.parse(filename) if filename.startswith("sha256-") else None
    except InvalidDigest:
        return None


def make_folder(folder: Path) -> None:
    """The folder exists, and its name survives a power cut. Raises `OSError`."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """The folder's entries are on disk. Raises `OSError`."""
    with closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


@contextmanager
def _create(session: Session) -> Iterator[tuple[Path, int]]:
    """A new staged file, open; gone at the end of the block unless it was renamed into its place."""
    staged = session.path()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with closing(os.open(staged, flags, 0o600)) as fd:
            yield staged, fd
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _link(file: _Incoming, staged: Path) -> bool:
    """A hard link to the very file that is open; False where there can be none."""
    try:
        os.link(file.path, staged)
    except OSError:
        return False
    if os.path.samestat(staged.lstat(), os.fstat(file.fd)):
        return True
    staged.unlink()  # `path` is a symbolic link, or names another file by now
    return False


def kind(mode: int) -> str:
    """What lies there, in words."""
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a folder" if stat.S_ISDIR(mode) else "a regular file" if stat.S_ISREG(mode) else "a special file"
