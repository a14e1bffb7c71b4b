"""Blobs: immutable files named by the SHA-256 of their bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import ingest
from .digest import Digest
from .errors import BadSource, Corrupt, InvalidDigest, Mismatch, NotFound, StoreError, os_errors
from .ingest import Progress
from .locks import Session

READ_LIMIT = 64 << 20
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

    def stat(self, digest: Digest) -> os.stat_result:
        """Raises `NotFound`, or `Corrupt` when something else lies in its place. Never follows a link."""
        path = self.path(digest)
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise NotFound(f"no blob {digest} in {self.folder}") from None
        except OSError as error:
            raise StoreError(f"cannot look at {path}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise Corrupt(f"{path} is {kind(found.st_mode)}, not a blob", hint="see `modelctl verify --repair`")
        return found

    def has(self, digest: Digest) -> bool:
        try:
            self.stat(digest)
        except (NotFound, Corrupt):
            return False
        return True

    @contextmanager
    def open(self, digest: Digest) -> Iterator[BinaryIO]:
        """The blob for reading. Raises `NotFound` or `Corrupt`."""
        self.stat(digest)
        path = self.path(digest)
        with os_errors("read", path):
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        with file:
            yield file

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """All bytes of a small blob, checked against its digest. Raises `NotFound` or `Corrupt`."""
        with self.open(digest) as file, os_errors("read", self.path(digest)):
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Corrupt(f"blob {digest} has more than the {limit} bytes that make sense here")
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

    def renew(self, digest: Digest) -> None:
        """Makes the blob young again for gc's grace period. Its ctime, by a chmod that changes nothing: a blob may
        share its inode with a file of the user's, whose mtime is not ours to touch."""
        path = self.path(digest)
        with suppress(OSError):  # another user's blob; the lock we hold protects it meanwhile
            path.chmod(stat.S_IMODE(path.lstat().st_mode))

    def adopt(
        self, source: Source, session: Session, *, expected: Digest | None, progress: Progress | None, link: bool
    ) -> Put:
        """Stores the bytes of `source`: staged, hashed, synced, checked, renamed, and the folder synced."""
        if expected is not None and self.has(expected):
            self.renew(expected)
            return Put(expected, self.stat(expected).st_size, existed=True)
        if isinstance(source, Path):
            with ingest.open_regular(source) as fd:
                return self._adopt_file(source, fd, session, expected, progress, link)
        with os_errors("store a blob in", self.folder):
            staged = session.path()
            with _create(staged) as out:
                if isinstance(source, bytes):
                    digest = ingest.copy_bytes(source, out)
                else:
                    digest = ingest.copy_stream(source, out, progress)
                return self._publish(staged, out, digest, expected)

    def _adopt_file(
        self, path: Path, fd: int, session: Session, expected: Digest | None, progress: Progress | None, link: bool
    ) -> Put:
        before = os.fstat(fd)
        with os_errors("store", path):
            if self._has_twin(fd, before.st_size):
                digest = ingest.hash_file(fd, progress)
                _check(digest, expected, path)
                if self.has(digest):
                    self.renew(digest)
                    return Put(digest, before.st_size, existed=True)
            staged = session.path()
            if link and _link(path, fd, staged):
                return self._publish(staged, fd, ingest.hash_file(fd, progress), expected, linked=True)
            ingest.check_room(staged.parent, fd)
            with _create(staged) as out:
                digest = ingest.copy_file(fd, out, progress)
                _check_unchanged(path, before, os.fstat(fd))
                return self._publish(staged, out, digest, expected)

    def _publish(self, staged: Path, fd: int, digest: Digest, expected: Digest | None, linked: bool = False) -> Put:
        """From here on the blob is either whole, synced and under its name, or not there."""
        _check(digest, expected, staged)
        size = os.fstat(fd).st_size
        if self._is_stored(digest, size):
            staged.unlink()
            self.renew(digest)
            return Put(digest, size, existed=True)
        if not linked:  # a linked file keeps its mode: it is the user's as well
            os.fchmod(fd, 0o444)
        os.fsync(fd)
        make_folder(self.folder)
        with os_errors("store", self.path(digest)):
            staged.rename(self.path(digest))
            sync_folder(self.folder)
        return Put(digest, size, existed=False)

    def _is_stored(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there with the size it must have; what is truncated or a link gets replaced."""
        try:
            return self.stat(digest).st_size == size
        except (NotFound, Corrupt):
            return False

    def _has_twin(self, fd: int, size: int) -> bool:
        """Whether a blob of this size starts, goes on and ends like the file: then it is worth hashing before copying.
        Models that differ share a size (all fine-tunes of a base do) but not these samples."""
        for entry, digest in self.names():
            if digest is None or not entry.is_file(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_size == size and self._is_alike(fd, digest, size):
                return True
        return False

    def _is_alike(self, fd: int, digest: Digest, size: int) -> bool:
        try:
            with self.open(digest) as blob:
                return all(
                    os.pread(fd, _SAMPLE, at) == os.pread(blob.fileno(), _SAMPLE, at)
                    for at in (0, size // 4, size // 2, size * 3 // 4, max(0, size - _SAMPLE))
                )
        except (OSError, StoreError):
            return False


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
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _create(staged: Path) -> Iterator[int]:
    """A new file, which is gone again if it was not renamed away by the end of the block."""
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _link(path: Path, fd: int, staged: Path) -> bool:
    """A hard link to the very file that is open as `fd`; False where there can be none."""
    try:
        os.link(path, staged)
    except OSError:
        return False
    if os.path.samestat(staged.lstat(), os.fstat(fd)):
        return True
    staged.unlink()  # `path` is a symbolic link, or names another file by now
    return False


def _check(digest: Digest, expected: Digest | None, where: Path) -> None:
    if expected is not None and digest != expected:
        raise Mismatch(f"expected {expected}, got {digest}: the bytes are not what was promised ({where.name})")


def _check_unchanged(path: Path, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadSource(f"{path} changed while it was read", hint="try again when nobody writes to it")


def kind(mode: int) -> str:
    """What lies there, in words."""
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a folder" if stat.S_ISDIR(mode) else "a regular file" if stat.S_ISREG(mode) else "a special file"
