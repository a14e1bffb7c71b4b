"""Names on disk: `refs/<host>/<namespace>/<model>/<tag>`, each a small file that points at a manifest blob.

Pins are the same one level deeper, `pins/<host>/<namespace>/<model>/<tag>/sha256-<hex>`: they keep a manifest of that
name alive and reachable as `name@sha256:…` after the name has moved on.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .blobs import make_folder, sync_folder
from .errors import Corrupt, InvalidName, NotFound, StoreError, closing, os_errors
from .locks import Session
from .manifest import Layer, parse_json
from .names import ModelName

_LIMIT = 4096  # bytes of a ref file; 150 are usual


@dataclass(frozen=True)
class Entry:
    """A ref file: the name as stored, where it lies, and when it was written (seconds since the epoch)."""

    name: ModelName
    path: Path
    modified: float


@dataclass(frozen=True)
class Unreadable:
    """A folder of names that cannot be listed, or is a link: nobody knows which models are in it."""

    path: Path
    problem: str
    is_link: bool = False


class Refs:
    """One tree of names. A name matches whatever its case; there is one file for all spellings."""

    def __init__(self, root: Path, depth: int = 4) -> None:
        self.root = root
        self._depth = depth

    def locate(self, name: ModelName) -> Path:
        """Where the name lies: existing folders and files in their own spelling, the rest in the caller's."""
        path = self.root
        for part in _parts(name)[: self._depth]:
            with os_errors("look up", path / part):
                path = _match(path, part)
        return path

    def entry(self, path: Path) -> Entry:
        """The entry at a path that `locate` gave. Raises `NotFound`."""
        name = _name(path.relative_to(self.root).parts)
        with os_errors("look at", path):
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                status = None
        if name is None or status is None or stat.S_ISDIR(status.st_mode):
            raise NotFound(f"nothing at {path}")
        return Entry(name, path, status.st_mtime)

    def read(self, path: Path) -> Layer:
        """The descriptor of the manifest a ref file points at. Raises `NotFound` or `Corrupt`."""
        with os_errors("read", path):
            try:
                data = _read(path)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"nothing at {path}") from None
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise Corrupt("the file of its name is a symbolic link") from None
                raise
        try:
            return Layer.from_json(parse_json(data, "text"))
        except Corrupt as error:
            raise Corrupt(f"in the file of its name, {error.message}") from None

    def write(self, name: ModelName, manifest: Layer, session: Session) -> Entry:
        """The name points at the manifest, durably. On failure it points where it did."""
        path = self.locate(name)
        with os_errors("write", path):
            before = _before(path)
            make_folder(path.parent)
            try:
                modified = _replace(path, json.dumps(manifest.to_json()).encode(), session)
                self._sync_up(path)
            except BaseException:  # Ctrl-C too
                _restore(path, before, session)
                raise
        return Entry(_name(path.relative_to(self.root).parts) or name, path, modified)

    def remove(self, path: Path, session: Session) -> None:
        """The file is not there, durably; folders it leaves empty go too. On failure it is there as before."""
        with os_errors("remove", path):
            before = _before(path)
            try:
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
            except BaseException:  # Ctrl-C too
                _restore(path, before, session)
                raise
        self._remove_empty(path.parent)

    def entries(self) -> Iterator[Entry | Unreadable]:
        """Every file with a valid name where a ref can be. Never follows a link."""
        for found in _walk(self.root, self._depth):
            if isinstance(found, Unreadable):
                yield found
                continue
            name = _name(_parts_below(self.root, found))
            if name is None:
                continue
            try:
                if not found.is_dir(follow_symlinks=False):
                    yield Entry(name, Path(found.path), found.stat(follow_symlinks=False).st_mtime)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                yield Unreadable(Path(found.path), f"{found.path} cannot be looked at: {error.strerror}")

    def foreign(self) -> Iterator[Path]:
        """What lies in the tree and can be no ref: bad names, folders too deep, files too high up."""
        for depth in range(1, self._depth + 1):
            for found in _walk(self.root, depth):
                if isinstance(found, Unreadable) or (found.is_symlink() and depth < self._depth):
                    continue
                is_leaf = depth == self._depth
                misplaced = found.is_dir(follow_symlinks=False) == is_leaf
                if misplaced or (is_leaf and _name(_parts_below(self.root, found)) is None):
                    yield Path(found.path)

    def folders(self) -> Iterator[Path]:
        """The tree's folders, deepest first."""
        for depth in range(self._depth - 1, 0, -1):
            for found in _walk(self.root, depth):
                if not isinstance(found, Unreadable) and found.is_dir(follow_symlinks=False):
                    yield Path(found.path)
        if os.path.lexists(self.root):
            yield self.root

    def _sync_up(self, path: Path) -> None:
        """Every folder down to the ref is on disk, whoever made it: a process that made one may have died before it
        could sync it."""
        for folder in path.parents:
            sync_folder(folder)
            if folder == self.root.parent:
                break

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


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


def _parts_below(root: Path, entry: os.DirEntry[str]) -> tuple[str, ...]:
    return tuple(entry.path[len(str(root)) + 1 :].split("/"))


def _match(folder: Path, part: str) -> Path:
    """The entry of `folder` that is `part` in some case, exact spelling first; refuses to walk through a link."""
    path = folder / part
    try:
        if stat.S_ISLNK(path.lstat().st_mode):
            raise Corrupt(f"{path} is a symbolic link, which a store never has", hint="see `modelctl verify --repair`")
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in _names(folder) if name.lower() == part.lower() and name != part]
        return _match(folder, others[0]) if others else path
    return path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(folder: Path | str, depth: int) -> Iterator[os.DirEntry[str] | Unreadable]:
    """The entries exactly `depth` levels down. A folder that is gone is empty; one that cannot be read is not: gc would
    take its models for garbage."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=_by_name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Unreadable(Path(folder), f"{folder} cannot be listed: {error.strerror}")
        return
    for entry in entries:
        if depth == 1:
            yield entry
        elif entry.is_symlink():
            yield Unreadable(Path(entry.path), f"{entry.path} is a symbolic link", is_link=True)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, depth - 1)


def _by_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _read(path: Path) -> bytes:
    with closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        return os.read(fd, _LIMIT)


def _before(path: Path) -> bytes | None:
    """The file as it is, to be able to take a change back; None if there is none."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InvalidName(f"{path} is a folder", hint="a name cannot be both a model and a folder of models") from None


def _restore(path: Path, before: bytes | None, session: Session) -> None:
    with suppress(OSError, StoreError):  # the disk is failing; the error that brought us here is the one to report
        if before is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or _read(path) != before:
            _replace(path, before, session)


def _replace(path: Path, data: bytes, session: Session) -> float:
    """The new file's mtime."""
    staged = session.path()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing(os.open(staged, flags, 0o644)) as fd:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
        modified = os.fstat(fd).st_mtime
    staged.rename(path)
    return modified


def missing(name: ModelName) -> NotFound:
    return NotFound(f"no model {name.short!r}", hint="`modelctl list` shows the models there are")
