"""Bytes on their way in: copied and hashed in one pass over the input, by the cheapest means the file system has.

What is hashed is what was written, never a second reading of the source, so a blob hashes to its name even if somebody
writes to the source meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .digest import Digest
from .errors import FULL, BadSource, Mismatch, closing

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0 when unknown)

CHUNK = 4 << 20
FICLONE = 0x40049409


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A file descriptor of a regular file; `BadSource` for anything else, at once: a FIFO must not hang us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSource(f"cannot read {path}: {error.strerror}") from error
    with closing(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadSource(f"{path} is not a regular file")
        yield fd


class Hasher:
    """SHA-256 on a thread of its own, one chunk behind the copy; both release the GIL."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def update(self, chunk: memoryview) -> None:
        """`chunk` must stay as it is until the next call returns."""
        self._settle()
        if len(chunk) < CHUNK // 16:
            self._sha.update(chunk)
        else:
            self._pending = self._pool().submit(self._sha.update, chunk)

    def digest(self) -> Digest:
        self._settle()
        return Digest(self._sha.hexdigest())

    def _pool(self) -> ThreadPoolExecutor:
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor  # 10 ms that `modelctl list` need not pay

            self._thread = ThreadPoolExecutor(1)
        return self._thread

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class Buffers:
    """Two buffers in turn: one is hashed while the other is filled."""

    def __init__(self, size: int = CHUNK) -> None:
        self._buffers = [memoryview(bytearray(max(1, min(size, CHUNK)))) for _ in range(2)]

    def next(self, limit: int = CHUNK) -> memoryview:
        self._buffers.reverse()
        return self._buffers[0][:limit]


def hash_file(fd: int, progress: Progress | None = None) -> Digest:
    """The digest of a whole file, holes not read from disk."""
    size, done = os.fstat(fd).st_size, 0
    buffers = Buffers(size)
    with Hasher() as hasher:
        while n := os.preadv(fd, [chunk := buffers.next()], done):
            hasher.update(chunk[:n])
            done += n
            if progress:
                progress(done, size)
        return hasher.digest()


def copy_stream(source: BinaryIO, out: int, size: int | None, progress: Progress | None = None) -> Digest:
    """From anything that can only be read once. `size`: how many bytes it should come to."""
    done = 0
    _check_room(out, size or 0)
    with Hasher() as hasher:
        while data := source.read(CHUNK):
            hasher.update(memoryview(data))
            _write(out, memoryview(data), done)
            done += len(data)
            if progress:
                progress(done, size or 0)
        digest = hasher.digest()
    if size not in (None, done):
        raise Mismatch(f"expected {size} bytes, got {done}: the data was cut short or changed on its way")
    return digest


def clone(source: int, out: int) -> bool:
    """`out` shares all extents with `source` (FICLONE): no bytes copied, no space taken. False where there is none."""
    try:
        fcntl.ioctl(out, FICLONE, source)
    except OSError as error:
        if error.errno in FULL or error.errno == errno.EIO:
            raise
        return False
    return True


def copy_file(source: int, out: int, progress: Progress | None = None) -> Digest:
    """From a regular file, by `copy_file_range` where that works, else read and write. Holes stay holes."""
    size, done = os.fstat(source).st_size, 0
    _check_room(out, os.fstat(source).st_blocks * 512)
    os.ftruncate(out, size)
    copier = _Copier(source, out)
    buffers = Buffers(size)
    with Hasher() as hasher:
        for end, is_hole in _extents(source, size):
            while done < end:
                chunk = buffers.next(end - done)
                n = _zero(chunk) if is_hole else copier.copy(done, chunk)
                hasher.update(chunk[:n])
                done += n
                if progress:
                    progress(done, size)
        return hasher.digest()


def _check_room(out: int, needed: int) -> None:
    """Refuses before the first byte is written rather than after the last that fitted."""
    disk = os.fstatvfs(out)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise OSError(errno.ENOSPC, f"it needs {_amount(needed)}, {_amount(free)} are free")


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 10**6 else f"{n_bytes / 1e3:.0f} KB"


class _Copier:
    """Copies chunks and leaves each one's bytes, as they were stored, in the given buffer."""

    def __init__(self, source: int, out: int) -> None:
        self._source, self._out = source, out
        self._in_kernel = hasattr(os, "copy_file_range")

    def copy(self, offset: int, chunk: memoryview) -> int:
        if self._in_kernel and (n := self._copy_file_range(offset, len(chunk))):
            return _read_back(self._out, chunk[:n], offset)
        n = os.preadv(self._source, [chunk], offset)
        if n == 0:
            raise BadSource("the file became shorter while it was read", hint="try again when nobody writes to it")
        _write(self._out, chunk[:n], offset)
        return n

    def _copy_file_range(self, offset: int, length: int) -> int:
        try:
            return os.copy_file_range(self._source, self._out, length, offset, offset)
        except OSError as error:
            if error.errno in FULL or error.errno == errno.EIO:
                raise
            self._in_kernel = False  # another file system, an old kernel, a sandbox
            return 0


def _read_back(out: int, chunk: memoryview, offset: int) -> int:
    n = os.preadv(out, [chunk], offset)
    if n == 0:
        raise OSError(errno.EIO, "the copy reads back shorter than it was written")
    return n


def _write(out: int, data: memoryview, offset: int) -> None:
    while data:
        n = os.pwrite(out, data, offset)
        data, offset = data[n:], offset + n


def _zero(chunk: memoryview) -> int:
    chunk[:] = bytes(len(chunk))
    return len(chunk)


def _extents(fd: int, size: int) -> Iterator[tuple[int, bool]]:
    """(end, is a hole) over the whole file, in order."""
    position = 0
    while position < size:
        data = _seek(fd, position, os.SEEK_DATA, size)
        if data > position:
            yield data, True
        hole = _seek(fd, data, os.SEEK_HOLE, size) if data < size else size
        if hole > data:
            yield hole, False
        position = max(hole, position + 1)


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    try:
        return min(size, os.lseek(fd, offset, whence))
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data after `offset`: a hole to the end
            return size
        return offset if whence == os.SEEK_DATA else size  # the file system knows no holes
