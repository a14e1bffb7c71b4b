"""Names on disk: `refs/<host>/<namespace>/<model>/<tag>`, each a small file that points at a manifest blob.

Pins are the same one level deeper, `pins/<host>/<namespace>/<model>/<tag>/sha256-<hex>`: they keep a manifest of that
name alive and reachable as `name@sha256:…` after the name has moved on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .blobs import make_folder, sync_folder
from .errors import Corrupt, InvalidName, NotFound, StoreError, os_errors
from .locks import Session
from .manifest import Layer, parse_json
from .names import ModelName

_LIMIT = 4096


@dataclass(frozen=True)
class Entry:
    """A ref file: the name as stored, where it lies, and when it was written (seconds since the epoch)."""

    name: ModelName
    path: Path
    modified: float


class Refs:
    """One tree of names. A name matches whatever its case; there is one file for all spellings."""

    def __init__(self, root: Path, depth: int = 4) -> None:
        self.root = root
        self._depth = depth

    def locate(self, name: ModelName) -> Path:
        """Where the name lies: existing folders and files in their own spelling, the rest in the caller's."""
        path = self.root
        for part in _parts(name)[: self._depth]:
            path = _match(path, part)
        return path

    def read(self, path: Path) -> Layer:
        """The descriptor of the manifest a ref file points at. Raises `NotFound` or `Corrupt`."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"nothing at {path}") from None
        except OSError as error:
            raise Corrupt(f"{path} cannot be read: {error.strerror}") from error
        try:
            data = os.read(fd, _LIMIT)
        except OSError as error:
            raise Corrupt(f"{path} cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        try:
            return Layer.from_json(parse_json(data, "name file"))
        except Corrupt as error:
            raise Corrupt(f"{path} is damaged: {error.message}", hint="create the model again") from None

    def write(self, name: ModelName, manifest: Layer, session: Session) -> Path:
        """The name points at the manifest, durably. On failure it points where it did."""
        path = self.locate(name)
        with os_errors("write", path):
            before = _bytes(path)
            make_folder(path.parent)
            staged = session.path()
            _write_synced(staged, json.dumps(manifest.to_json()).encode())
            staged.rename(path)
            _confirm(path, before)
        return path

    def remove(self, path: Path) -> None:
        """The file is not there, durably; folders it leaves empty go too. On failure it is there as before."""
        with os_errors("remove", path):
            before = _bytes(path)
            path.unlink(missing_ok=True)
            _confirm(path, before)
        for folder in path.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def entries(self) -> Iterator[Entry]:
        """Every file with a valid name where a ref can be. Never follows a link."""
        for path, entry in _walk(self.root, self._depth):
            name = _name(path.relative_to(self.root).parts)
            if name is not None and not entry.is_dir(follow_symlinks=False):
                try:
                    modified = entry.stat(follow_symlinks=False).st_mtime
                except OSError:
                    continue  # removed meanwhile
                yield Entry(name, path, modified)

    def entry(self, path: Path) -> Entry:
        """The entry at a path that `locate` gave. Raises `NotFound`."""
        name = _name(path.relative_to(self.root).parts)
        try:
            modified = path.lstat().st_mtime
        except OSError:
            name = None
        if name is None:
            raise NotFound(f"nothing at {path}")
        return Entry(name, path, modified)

    def foreign(self) -> Iterator[Path]:
        """What lies in the tree and is no ref: bad names, folders too deep, files too high up."""
        for depth in range(1, self._depth + 1):
            for path, entry in _walk(self.root, depth):
                is_leaf = depth == self._depth
                misplaced = entry.is_dir(follow_symlinks=False) == is_leaf
                if misplaced or (is_leaf and _name(path.relative_to(self.root).parts) is None):
                    yield path


def _parts(name: ModelName) -> tuple[str, ...]:
    return (*name.parts, name.digest.filename) if name.digest else name.parts


def _name(parts: tuple[str, ...]) -> ModelName | None:
    host, namespace, model, tag, *pinned = parts
    text = f"{host}/{namespace}/{model}:{tag}" + "".join(f"@{digest}" for digest in pinned)
    try:
        name = ModelName.parse(text)
    except StoreError:
        return None
    return name if _parts(name) == parts else None


def _match(folder: Path, part: str) -> Path:
    """The entry of `folder` that is `part` in some case, exact spelling first; refuses to walk through a link."""
    path = folder / part
    if not os.path.lexists(path):
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError:
            names = []
        path = folder / next((name for name in names if name.lower() == part.lower()), part)
    if path.is_symlink():
        raise Corrupt(f"{path} is a symbolic link, which a store never has", hint="remove it")
    return path


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """The entries exactly `depth` levels down."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if depth == 1:
            yield Path(entry.path), entry
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth - 1)


def _bytes(path: Path) -> bytes | None:
    """The file as it is, to be able to take a change back; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InvalidName(f"{path} is a folder", hint="a name cannot be both a model and a folder of models") from None


def _confirm(path: Path, before: bytes | None) -> None:
    """Syncs the folder. Where the disk refuses, the caller will report a failure, so the change is taken back."""
    try:
        sync_folder(path.parent)
    except OSError:
        _restore(path, before)
        raise


def _restore(path: Path, before: bytes | None) -> None:
    try:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            undo = path.with_name(f".{path.name}.undo")
            _write_synced(undo, before)
            undo.rename(path)
    except OSError:
        pass  # the disk is failing; the error that brought us here is the one to report


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        written = os.write(fd, data)
        if written != len(data):
            raise OSError(28, "the disk took only part of it")
        os.fsync(fd)
    finally:
        os.close(fd)


def missing(name: ModelName) -> NotFound:
    return NotFound(f"no model {name.short!r}", hint="`modelctl list` shows the models there are")
