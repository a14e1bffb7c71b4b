"""Looks at a store without its own code, and at a trace of what was done to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelctl.store import Store

Names = dict[str, str]  # what names point at


@dataclass
class State:
    refs: Names
    pins: Names
    problems: list[str]


def look(root: Path, *, rotten_ok: bool = True) -> State:
    """I1 and I2, and what every name points at."""
    problems = []
    for blob in sorted((root / "blobs").iterdir()):
        is_sound = f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}" == blob.name
        if not is_sound and not (rotten_ok and blob.read_bytes() == b"Rotten"):
            problems.append(f"I1: blob {blob.name[:19]} is damaged")
    state = State(_names(root / "refs", problems), _names(root / "pins", problems), problems)
    for name, digest in {**state.refs, **state.pins}.items():
        problems += _check_model(root, name, digest)
    return state


def _names(tree: Path, problems: list[str]) -> Names:
    found = {}
    for path in sorted(tree.rglob("*")) if tree.exists() else []:
        if path.is_file():
            try:
                found[str(path.relative_to(tree))] = json.loads(path.read_bytes())["digest"]
            except (ValueError, KeyError):
                problems.append(f"I3: name file {path} is torn")
    return found


def _check_model(root: Path, name: str, digest: str) -> Iterator[str]:
    try:
        manifest = json.loads((root / "blobs" / digest.replace(":", "-")).read_bytes())
    except (OSError, ValueError) as error:
        yield f"I2: manifest of {name}: {error}"
        return
    for layer in [manifest["config"], *manifest["layers"]]:
        blob = root / "blobs" / layer["digest"].replace(":", "-")
        if not blob.is_file() or blob.stat().st_size != layer["size"]:
            yield f"I2: {name} needs {blob.name[:19]}, which is missing or too short"


def outside(work: Path) -> dict[str, object]:
    """Everything beside the store: bytes, modes, times."""
    found: dict[str, object] = {}
    for path in sorted(work.rglob("*")):
        if path.is_file() and not path.is_relative_to(work / "store"):
            status = path.stat()
            found[str(path)] = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
    return found


def litter(store: Store) -> list[str]:
    """What is left in the store and reachable from no name."""
    needed = {str(ref.digest) for ref in (*store.list(), *store.pinned())}
    needed |= {str(layer.digest) for ref in (*store.list(), *store.pinned()) for layer in ref.manifest}
    stored = {path.name.replace("-", ":") for path in store.blobs.folder.iterdir()}
    problems = [f"I8: orphan {digest[:19]}" for digest in stored - needed]
    return problems + [f"I5: litter {path}" for path in store.staging.iterdir()]


# the order of system calls

_CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\w+)")
_FD = re.compile(r"\d+<(/[^>]*)>")
_QUOTED = re.compile(r'"(/[^"]*)"')
WRITES = ("write", "pwrite64", "copy_file_range", "ftruncate", "fallocate", "ioctl")
CHANGES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat")
TRACED = ",".join(f"?{call}" for call in (*WRITES, "fsync", "fdatasync", *CHANGES))  # not every machine has them all

_KEPT = ("blobs", "refs", "pins", "quarantine")


@dataclass
class Order:
    """A crash of the machine keeps what was synced, and anything or nothing of the rest. So a file is synced before it
    is renamed into the store and its folder after; a name changes when all blobs are safe, a blob goes when all names
    are. Feed it the lines of `strace -f -y`, then `end`."""

    store: Path
    n_renames: int = 0
    problems: list[str] = field(default_factory=list)
    _synced: set[str] = field(default_factory=set)  # files since their last write
    _pending: dict[str, str] = field(default_factory=dict)  # folders that changed since their last sync, and how

    def feed(self, line: str) -> None:
        match = _CALL.match(line)
        if match is None or match[3].startswith("-1"):
            return
        call, arguments = match[1], match[2]
        if call in ("fsync", "fdatasync"):
            path = _FD.findall(arguments)[0]
            self._synced.add(path)
            self._pending.pop(path, None)
        elif call in WRITES:
            self._synced.difference_update(_FD.findall(arguments))
        elif call in CHANGES and (paths := [path for path in _paths(arguments) if self._is_in_store(path)]):
            self._change(call, paths)

    def end(self) -> list[str]:
        """All problems. What is pending now could be lost although success was reported."""
        self._expect_nothing_pending("at the end", *_KEPT)
        return self.problems

    def _is_in_store(self, path: Path) -> bool:
        return path.is_relative_to(self.store)

    def _change(self, call: str, paths: list[Path]) -> None:
        target = paths[-1]
        kind = target.relative_to(self.store).parts[0]
        if kind not in _KEPT:
            return
        if call.startswith("rename"):
            self.n_renames += 1
            if kind != "quarantine" and str(paths[0]) not in self._synced:
                self.problems.append(f"{target} was renamed into its place before its bytes were synced")
            if kind == "quarantine":
                self._pending[str(paths[0].parent)] = f"{paths[0]} was taken away"
        if kind in ("refs", "pins") and not call.startswith("mkdir"):
            self._expect_nothing_pending(f"when {target} changed", "blobs")
        if kind == "blobs" and call.startswith("unlink"):
            self._expect_nothing_pending(f"when {target} was removed", "refs", "pins")
            return
        self._pending[str(target.parent)] = f"{call} of {target}"

    def _expect_nothing_pending(self, when: str, *kinds: str) -> None:
        for folder, what in self._pending.items():
            below = Path(folder).relative_to(self.store).parts if self._is_in_store(Path(folder)) else ()
            if not below or below[0] in kinds:
                self.problems.append(f"{when}, {folder} was not synced after {what}")


def _paths(arguments: str) -> list[Path]:
    return [Path(text) for text in _QUOTED.findall(arguments)]
