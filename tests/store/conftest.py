from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelctl.store import Layer, Manifest, Store, media

Build = Callable[..., Manifest]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", patience=0.2)


@pytest.fixture
def build(store: Store) -> Build:
    """Stores layers of the given bytes, and returns a manifest of them."""

    def build(*layers: bytes, media_type: str = media.MODEL) -> Manifest:
        config = store.put(b"{}")
        stored = [store.put(data) for data in layers]
        return Manifest(
            Layer(media.CONFIG, config.digest, config.size),
            tuple(Layer(media_type, put.digest, put.size) for put in stored),
        )

    return build


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file outside the store that no test may change; the fixture checks it."""
    path = tmp_path / "canary"
    path.write_bytes(b"untouched")
    before = path.stat()
    yield path
    after = path.lstat()
    assert path.read_bytes() == b"untouched"
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
