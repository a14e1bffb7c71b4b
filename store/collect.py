"""gc: takes away what no name and no pin reaches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import locks
from .digest import Digest
from .errors import Corrupt, os_errors
from .store import Damage, Ref, Store

GRACE = 3600.0  # seconds a blob without a model lives: an upload comes some time before the create that uses it


@dataclass
class Collected:
    """What a gc removed, or would remove; what it left because it is young; and foreign files it never touches."""

    blobs: list[Digest] = field(default_factory=list)
    n_bytes: int = 0
    n_young: int = 0
    foreign: list[Path] = field(default_factory=list)


def reachable(refs: Iterable[Ref]) -> set[Digest]:
    """Every blob that some name needs, manifests included."""
    found = set()
    for ref in refs:
        found.add(ref.digest)
        found.update(layer.digest for layer in ref.manifest)
    return found


def collect(store: Store, *, grace: float = GRACE, dry_run: bool = False, force: bool = False) -> Collected:
    """Removes unreachable blobs older than `grace` seconds, and everything staged by processes that died.

    Waits until no writer holds the store (`Locked` if that takes too long). Raises `Corrupt` and removes nothing while
    some name is damaged, since nobody knows which blobs it needs; `force` gives those up.
    """
    if not os.path.lexists(store.root):
        return Collected()
    if dry_run:
        with store.reading():
            return _plan(store, grace, force)
    with store.collecting() as session:
        if locks.dead(store.staging):  # then opening our session could not settle what they did
            store.settle()
        found = _plan(store, grace, force)
        for digest in found.blobs:
            store.blobs.remove(digest)
        _remove_empty_folders(store)
        _clear_staging(store.staging, session.folder)
    return found


def _plan(store: Store, grace: float, force: bool) -> Collected:
    needed = reachable(_roots(store, force))
    found, now = Collected(), time.time()
    for entry, digest in store.blobs.names():
        if digest is None or not entry.is_file(follow_symlinks=False):
            found.foreign.append(Path(entry.path))
        elif digest not in needed:
            with os_errors("look at", Path(entry.path)):
                status = entry.stat(follow_symlinks=False)
            # ctime: linking, renaming and `renew` set it, nobody can set it back; one in the future counts as young.
            if grace and now - status.st_ctime < grace:
                found.n_young += 1
            else:
                found.blobs.append(digest)
                found.n_bytes += status.st_size
    return found


def _roots(store: Store, force: bool) -> list[Ref]:
    every = [*store.all(store.refs), *store.all(store.pins)]
    damaged = [found for found in every if isinstance(found, Damage)]
    if damaged and not force:
        raise _unknown(damaged)
    return [found for found in every if isinstance(found, Ref)]


def _unknown(damaged: list[Damage]) -> Corrupt:
    names = ", ".join(damage.name.short if damage.name else str(damage.path) for damage in damaged)
    hint = "create it again, remove it, or run `modelctl gc --force` to give it up"
    if not all(damage.is_certain for damage in damaged):  # giving up what may be sound is no advice
        hint = "check the disk and whose files these are, then try again"
    return Corrupt(f"nothing removed: nobody knows which blobs {names} needs ({damaged[0].problem})", hint=hint)


def _remove_empty_folders(store: Store) -> None:
    """Those that a killed rm left."""
    for refs in (store.refs, store.pins):
        for folder in refs.folders():
            if folder != refs.root:
                with suppress(OSError):  # only the empty ones go
                    folder.rmdir()


def _clear_staging(staging: Path, own: Path | None) -> None:
    with suppress(OSError):
        for entry in staging.iterdir():
            if entry == own:
                continue
            if entry.is_dir() and not entry.is_symlink():
                locks.remove_tree(entry)
            else:
                entry.unlink()
