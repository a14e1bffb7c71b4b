"""The daemon's models by name, read from the store once, and again when they may have changed."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelctl.model import Model
from modelctl.store import Store, StoreError

FRESH = 1.0  # seconds after which a model's blobs are looked at again: somebody may have cut or removed one
MAX_KNOWN = 256  # names, in all spellings that clients think of

Stamp = tuple[int, int, int]  # another one for another file: inode, size, time of the last change
_NOTHING: Stamp = (0, 0, 0)


@dataclass
class Known:
    model: Model
    file: Path  # that says what the name means
    stamp: Stamp
    blobs: dict[Path, Stamp]
    until: float

    def is_current(self) -> bool:
        if _stamp(self.file) != self.stamp:
            return False
        if time.monotonic() >= self.until:
            if any(_stamp(path) != stamp for path, stamp in self.blobs.items()):
                return False
            self.until = time.monotonic() + FRESH
        return True


class Catalog:
    """Every request names its model, and a name that comes often should not read eight files each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Known] = {}
        self._reading = asyncio.Lock()

    async def model(self, name: str) -> Model:
        """Raises what `Model.load` does."""
        if (known := self._get(name)) is None:
            async with self._reading:  # a crowd reads once
                if (known := self._get(name)) is None:
                    known = await asyncio.to_thread(self._load, name)
                    if len(self._known) >= MAX_KNOWN:
                        self._known.clear()
                    self._known[name] = known
        return known.model

    def _get(self, name: str) -> Known | None:
        known = self._known.get(name)
        return known if known is not None and known.is_current() else None

    def _load(self, name: str) -> Known:
        file, stamp = Path(), _NOTHING
        with suppress(StoreError):  # `Model.load` says it better
            file = self._store.where(name)
            stamp = _stamp(file)  # before the file is read, so that a change meanwhile is noticed
        model = Model.load(self._store, name)
        blobs = {path: _stamp(path) for path in (model.base_path, *(adapter.path for adapter in model.adapters))}
        return Known(model, file, stamp, blobs, time.monotonic() + FRESH)


def _stamp(file: Path) -> Stamp:
    try:
        status = os.lstat(file)
    except OSError:
        return _NOTHING
    return status.st_ino, status.st_size, status.st_mtime_ns
