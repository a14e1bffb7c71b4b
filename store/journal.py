"""What an interrupted verify found good, so that the next one need not read it again."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from .digest import Digest

_RESUME_WITHIN = 24 * 3600.0  # seconds for which an interrupted run's results count


class Journal:
    """Lines of digest, size, mtime and ctime in one file; a blob that changed since has another line."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._good = self._load() if resume else set()
        self._fd = -1

    def __enter__(self) -> Journal:
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
