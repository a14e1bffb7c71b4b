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


@dataclass(frozen=True)
class Known:
    model: Model
    file: Path  # that says what the name means
    stamp: tuple[int, int]
    until: float

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self.until and _stamp(self.file) == self.stamp


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
        return known if known is not None and known.is_fresh else None

    def _load(self, name: str) -> Known:
        file, stamp = Path(), (0, 0)
        with suppress(StoreError):  # `Model.load` says it better
            file = self._store.where(name)
            stamp = _stamp(file)  # before the file is read, so that a change meanwhile is noticed
        return Known(Model.load(self._store, name), file, stamp, time.monotonic() + FRESH)


def _stamp(file: Path) -> tuple[int, int]:
    """Another one for another file."""
    try:
        status = os.lstat(file)
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
