"""Disks that are full or read-only, stores of other users, torn names: a clear error, and a healthy rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelctl.store import Corrupt, NoSpace, NotFound, Store, ingest
from modelctl.store.collect import collect
from modelctl.store.verify import verify

AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts and changes of user need root"
)

PRELUDE = """
import os, sys
from pathlib import Path
from modelctl.store import *
from modelctl.store.collect import collect
from modelctl.store.usage import usage
from modelctl.store.verify import verify
store = Store(Path(sys.argv[1]), patience=1)
def model(*layers):
    stored = [store.put(data) for data in (b"{}", *layers)]
    config, *rest = [Layer(media.MODEL, put.digest, put.size) for put in stored]
    return Manifest(config, tuple(rest))
def error_of(act):
    try:
        act()
    except StoreError as error:
        return error
    raise SystemExit(f"no error from {act}")
"""


def _run(code: str, root: Path, *before: str) -> None:
    """Runs `code` in a process of its own, behind the commands `before`."""
    step = [sys.executable, "-c", PRELUDE + code, str(root)]
    done = subprocess.run([*before, *step], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _mounted(options: str, root: Path) -> tuple[str, ...]:
    return ("unshare", "-m", "sh", "-c", f'mount {options} "{root}" && exec "$@"', "sh")


@AS_ROOT
def test_a_full_disk(tmp_path: Path) -> None:
    """tmpfs of 1 MB: refused before or while writing, nothing left, removing still works, and with room it goes on."""
    code = """
import io, shutil, subprocess
store.write("small", model(os.urandom(100_000)))
store.write("doomed", model(os.urandom(100_000)))
free = shutil.disk_usage(store.root).free
(source := Path("/dev/shm/modelctl-test-source")).write_bytes(os.urandom(3_000_000))
try:
    for act in (lambda: store.put(source), lambda: store.put(io.BytesIO(source.read_bytes())),
                lambda: store.put(io.BytesIO(b"x"), size=3_000_000)):
        error = error_of(act)
        assert isinstance(error, NoSpace) and "modelctl gc" in str(error) and str(store.root) in str(error), error
        assert shutil.disk_usage(store.root).free == free
    filler = store.root.parent / store.root.name / "filler"
    try:
        with filler.open("wb", buffering=0) as out:
            while out.write(bytes(4096)):
                pass
    except OSError:
        pass
    assert isinstance(error_of(lambda: store.put(b"tiny" * 2000)), NoSpace)
    assert isinstance(error_of(lambda: store.copy("small", "copy")), NoSpace)
    assert {ref.name.model for ref in store.list()} == {"small", "doomed"}
    store.remove("doomed")
    assert len(collect(store, grace=0).blobs) == 2
    assert [ref.name.model for ref in store.list()] == ["small"]
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(store.root)], check=True)
    assert store.put(source).size == 3_000_000
finally:
    source.unlink()
assert verify(store).problems == []
"""
    (root := tmp_path / "store").mkdir()
    _run(code, root, *_mounted("-t tmpfs -o size=1m none", root))


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    code = """
import io, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
source = store.root.parent / "source"
large = bytes(2 << 20)
for act in (lambda: store.put(source), lambda: store.put(io.BytesIO(large)), lambda: store.put(large)):
    assert isinstance(error_of(act), NoSpace)
assert [path for path in store.root.rglob("*") if path.is_file() and path.stat().st_size > 10] == []
store.write("small", model(b"base"))
"""
    (tmp_path / "source").write_bytes(os.urandom(2 << 20))
    _run(code, tmp_path / "store")


@AS_ROOT
def test_a_read_only_store(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    store.put(b"garbage")
    code = """
assert [ref.name.model for ref in store.list()] == ["tutor"]
assert store.blob(store.resolve("tutor").manifest.layers[0].digest).read_bytes() == b"base"
assert verify(store).problems == []
assert len(collect(store, grace=0, dry_run=True).blobs) == 1
assert usage(store).n_garbage == 7
for act in (lambda: store.put(b"x"), lambda: store.remove("tutor"), lambda: store.copy("tutor", "b"),
            lambda: store.pin("tutor"), lambda: collect(store, grace=0)):
    error = error_of(act)
    assert isinstance(error, ReadOnly), repr(error)
    assert "Read-only file system" in str(error) and str(store.root) in str(error), error
"""
    _run(code, store.root, *_mounted(f'-r --bind "{store.root}"', store.root))


@AS_ROOT
def test_another_users_store(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    for folder in store.root.parents:
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(0o755)
    code = """
os.setgid(65534); os.setuid(65534)
assert [ref.name.model for ref in store.list()] == ["tutor"]
assert verify(store).problems == []
for act in (lambda: store.put(b"x"), lambda: store.remove("tutor"), lambda: store.copy("tutor", "b")):
    error = error_of(act)
    assert isinstance(error, Denied), repr(error)
    assert "belongs to user root, you are" in str(error) and "MODELCTL_HOME" in str(error), error
"""
    _run(code, store.root)


@pytest.mark.parametrize(
    "torn",
    [b"", b"{", b"\0" * 150, b'{"mediaType":"x"}', b'{"digest":"sha256:..","mediaType":"x","size":1}', b"x" * 10**7],
)
def test_a_torn_name(store: Store, build, torn: bytes) -> None:
    """The others stay usable, gc keeps its hands off, and creating it again heals it."""
    manifest = build(b"base")
    healthy, broken = store.write("healthy", manifest), store.write("broken", build(b"other base"))
    path = store.refs.locate(broken.name)
    path.write_bytes(torn)
    with pytest.raises(Corrupt, match="is damaged"):
        store.resolve("broken")
    assert store.list() == [healthy]
    (damage,) = store.damaged()
    assert (damage.name, damage.path) == (broken.name, path)
    assert damage.problem.startswith("in the file of its name, ")
    assert "damaged" not in damage.problem, "whoever shows it says so"
    with pytest.raises(Corrupt, match="broken:latest"):
        collect(store, grace=0)
    assert [problem.path for problem in verify(store).problems] == [path]
    store.copy("healthy", "copied")
    store.remove("copied")
    store.write("broken", broken.manifest)
    assert verify(store).problems == []
    path.write_bytes(torn)
    store.remove("broken")
    assert verify(store).problems == []


def test_a_name_that_is_a_folder_or_a_link(store: Store, build, canary: Path) -> None:
    ref = store.write("tutor", build(b"base"))
    path = store.refs.locate(ref.name)
    path.unlink()
    path.symlink_to(canary)
    assert store.list() == []
    for act in (store.resolve, store.remove, lambda name: store.write(name, ref.manifest)):
        with pytest.raises(Corrupt, match="symbolic link"):
            act("tutor")
    assert [problem.path for problem in verify(store, repair=True).problems] == [path]
    path.mkdir()
    with pytest.raises(NotFound):
        store.resolve("tutor")
    assert [problem.path for problem in verify(store, repair=True).problems] == [path]
    assert store.write("tutor", ref.manifest).digest == ref.digest


def test_a_store_on_two_file_systems_is_explained(store: Store, tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    elsewhere = Path("/dev/shm") / f"modelctl-test-{os.getpid()}"
    elsewhere.mkdir()
    try:
        store.root.mkdir()
        (store.root / "blobs").symlink_to(elsewhere)
        with pytest.raises(Exception, match="one file system"):
            store.put(b"data")
        assert list(elsewhere.iterdir()) == []
    finally:
        elsewhere.rmdir()


def test_no_space_is_said_with_numbers(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "clone", lambda source, out: False)
    (tmp_path / "file").write_bytes(bytes(8 << 20))
    real = os.fstatvfs
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: full)
    with pytest.raises(NoSpace, match="it needs 8 MB, 41 KB are free"):
        store.put(tmp_path / "file")
    monkeypatch.setattr(os, "fstatvfs", real)
    assert store.put(tmp_path / "file").size == 8 << 20
