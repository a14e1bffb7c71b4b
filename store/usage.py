"""du: where the bytes are."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .collect import reachable
from .digest import Digest
from .names import ModelName
from .store import Damage, Ref, Store


@dataclass(frozen=True)
class ModelUsage:
    """Bytes of one model's blobs, manifest included: all of them, those no other name needs, and the rest."""

    name: ModelName
    n_bytes: int
    n_own: int

    @property
    def n_shared(self) -> int:
        return self.n_bytes - self.n_own


@dataclass(frozen=True)
class Usage:
    """All counts are bytes, except `n_garbage_blobs`. `n_garbage`: what gc frees once nothing of it is young.
    `damaged` is not empty: gc will refuse, and some of the garbage may be theirs."""

    models: tuple[ModelUsage, ...]
    n_bytes: int
    n_garbage: int
    n_garbage_blobs: int
    n_staged: int
    n_quarantined: int
    damaged: tuple[Damage, ...]


def usage(store: Store) -> Usage:
    """Reads names and sizes only. Models that share bytes each count them; the total counts them once."""
    sizes = _blob_sizes(store)
    found = [found for refs in (store.refs, store.pins) for found in store.all(refs)]
    models = [ref for ref in found if isinstance(ref, Ref)]
    needs = {ref.name: reachable([ref]) for ref in models}
    n_users = Counter(digest for digests in needs.values() for digest in digests)
    garbage = [size for digest, size in sizes.items() if digest not in n_users]
    return Usage(
        models=tuple(_model(name, digests, sizes, n_users) for name, digests in needs.items()),
        n_bytes=sum(sizes.values()),
        n_garbage=sum(garbage),
        n_garbage_blobs=len(garbage),
        n_staged=_tree_size(store.staging),
        n_quarantined=_tree_size(store.quarantine),
        damaged=tuple(damage for damage in found if isinstance(damage, Damage)),
    )


def _model(name: ModelName, digests: set[Digest], sizes: dict[Digest, int], n_users: Counter[Digest]) -> ModelUsage:
    own = sum(sizes.get(digest, 0) for digest in digests if n_users[digest] == 1)
    return ModelUsage(name, sum(sizes.get(digest, 0) for digest in digests), own)


def _blob_sizes(store: Store) -> dict[Digest, int]:
    sizes = {}
    for entry, digest in store.blobs.names():
        with suppress(FileNotFoundError):
            if digest is not None and entry.is_file(follow_symlinks=False):
                sizes[digest] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _tree_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total
