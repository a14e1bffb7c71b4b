"""Putting bytes in: every kind of source, once, whole, read-only."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import stat
from pathlib import Path

import pytest

from modelctl.store import BadSource, Corrupt, Digest, Mismatch, NotFound, Store, StoreError, blobs, ingest

MEBI = 1 << 20


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("size", [0, 1, 300_000, 9 * MEBI + 17])
def test_every_kind_of_source_is_stored_under_its_digest(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    file = tmp_path / "file"
    file.write_bytes(data)
    for at, source in enumerate((file, data, io.BytesIO(data))):
        put = store.put(source)
        assert (put.digest, put.size, put.existed) == (Digest.of(data), size, at > 0)
    path = store.blob(put.digest)
    assert path.is_absolute()
    assert path.read_bytes() == data == store.read(put.digest, limit=size)
    assert _mode(path) == 0o444
    assert list(store.staging.iterdir()) == []


def test_progress_ends_at_the_size(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(9 * MEBI))
    seen: list[tuple[int, int]] = []
    store.put(file, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9 * MEBI, 9 * MEBI)
    assert seen == sorted(seen)


def test_storing_a_file_again_writes_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(2 * MEBI))
    store.put(file)

    def copy_file(*args: object) -> Digest:
        raise AssertionError("copied although the bytes were stored")

    monkeypatch.setattr(ingest, "copy_file", copy_file)
    assert store.put(file).existed


def test_a_file_that_only_looks_like_a_blob_is_stored_all_the_same(store: Store, tmp_path: Path) -> None:
    """The twin check samples; the digest decides."""
    data = bytearray(os.urandom(2 * MEBI))
    (tmp_path / "a").write_bytes(data)
    data[100_000] ^= 1  # between two samples
    (tmp_path / "b").write_bytes(data)
    first, second = store.put(tmp_path / "a"), store.put(tmp_path / "b")
    assert not second.existed
    assert store.blob(first.digest).read_bytes() != store.blob(second.digest).read_bytes() == data


@pytest.mark.parametrize("break_kernel_copy", [False, True], ids=["copy_file_range", "read and write"])
def test_holes_stay_holes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_kernel_copy: bool
) -> None:
    if break_kernel_copy:

        def copy_file_range(*args: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.write(os.urandom(MEBI))
        out.seek(200 * MEBI)
        out.write(b"end")
        out.truncate(300 * MEBI)
    put = store.put(file)
    blob = store.blob(put.digest)
    assert blob.stat().st_blocks * 512 < 8 * MEBI
    with file.open("rb") as left, blob.open("rb") as right:
        assert all(left.read(MEBI) == right.read(MEBI) for _ in range(301))


def test_a_link_takes_no_space_and_leaves_the_file_as_it_was(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(2 * MEBI))
    file.chmod(0o640)
    before = file.stat()
    blob = store.blob(store.put(file, link=True).digest)
    after = file.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    if not _clones(tmp_path):
        assert blob.samefile(file)


def _clones(folder: Path) -> bool:
    (folder / "clone-source").write_bytes(b"x")
    with (folder / "clone-source").open("rb") as source, (folder / "clone").open("wb") as out:
        try:
            fcntl.ioctl(out.fileno(), ingest.FICLONE, source.fileno())
        except OSError:
            return False
    return True


def test_a_link_to_a_symlink_copies_what_it_points_at(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "alias").symlink_to("file")
    blob = store.blob(store.put(tmp_path / "alias", link=True).digest)
    assert not blob.is_symlink()
    assert blob.read_bytes() == b"data"


def test_a_file_of_the_stores_own_becomes_read_only_when_linked(store: Store) -> None:
    with store.writing() as session:
        path = session.path()
        path.write_bytes(b"converted")
        assert _mode(store.blob(store.put(path, link=True).digest)) == 0o444


def test_promises_are_checked_before_anything_shows(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"wrong bytes")
    promised = Digest.of(b"right bytes")
    for source in (tmp_path / "file", b"wrong bytes", io.BytesIO(b"wrong bytes")):
        with pytest.raises(Mismatch, match=rf"expected {promised}, got sha256:"):
            store.put(source, expected=promised)
    with pytest.raises(Mismatch, match="expected 5 bytes, got 11"):
        store.put(io.BytesIO(b"wrong bytes"), size=5)
    assert list(store.blobs.folder.iterdir() if store.blobs.folder.exists() else []) == []
    assert store.put(io.BytesIO(b"right bytes"), expected=promised, size=11).digest == promised


def test_what_is_stored_already_is_not_read_again(store: Store) -> None:
    put = store.put(b"data")

    class Untouchable(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            raise AssertionError("read")

    assert store.put(Untouchable(), expected=put.digest, size=4).existed


def test_a_truncated_blob_is_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    put = store.put(tmp_path / "file")
    blob = store.blob(put.digest)
    for source in (tmp_path / "file", b"0123456789", io.BytesIO(b"0123456789")):
        blob.chmod(0o644)
        blob.write_bytes(b"01234")
        assert not store.put(source, expected=put.digest, size=10).existed
        assert blob.read_bytes() == b"0123456789"


def test_special_files_are_refused_at_once(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path in (Path("/dev/zero"), tmp_path, *(tmp_path / name for name in ("fifo", "loop", "socket", "missing"))):
        with pytest.raises(BadSource) as caught:
            store.put(path)
        assert str(path) in str(caught.value)


def test_a_file_that_changes_while_it_is_read_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "clone", lambda source, out: False)  # a clone is a snapshot, which nothing changes
    file = tmp_path / "file"
    file.write_bytes(os.urandom(9 * MEBI))

    def grow(done: int, total: int) -> None:
        with file.open("ab") as out:
            out.write(b"more")

    with pytest.raises(BadSource, match="changed while it was read"):
        store.put(file, progress=grow)

    def shrink(done: int, total: int) -> None:
        os.truncate(file, 5 * MEBI)

    with pytest.raises(BadSource):
        store.put(file, progress=shrink)
    assert not store.blobs.folder.exists()


def test_an_interrupted_put_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(9 * MEBI))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for source in (tmp_path / "file", io.BytesIO(bytes(9 * MEBI))):
        with pytest.raises(KeyboardInterrupt):
            store.put(source, progress=interrupt)
    assert [path for path in store.root.rglob("*") if path.is_file() and path.stat().st_size > 10] == []


def test_missing_and_foreign_blobs(store: Store, canary: Path) -> None:
    digest = Digest.of(b"data")
    with pytest.raises(NotFound, match=str(digest)):
        store.blob(digest)
    assert not store.has(digest)
    path = store.blobs.path(digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(canary)
    for look in (store.blob, store.read):
        with pytest.raises(StoreError, match="is a symbolic link, not a blob"):
            look(digest)
    assert not store.has(digest)
    assert not store.put(b"data").existed  # over the link, not through it
    assert store.read(digest) == b"data"


def test_a_folder_in_a_blobs_place_is_named(store: Store) -> None:
    path = store.blobs.path(Digest.of(b"data"))
    path.mkdir(parents=True)
    with pytest.raises(Corrupt, match=f"{path} is a folder, not a blob") as caught:
        store.put(b"data")
    assert "modelctl verify --repair" in str(caught.value)
    assert path.is_dir()
    assert list(store.staging.iterdir()) == []


def test_small_reads_are_checked(store: Store) -> None:
    digest = store.put(b"0123456789").digest
    with pytest.raises(StoreError, match="more than the 5 bytes"):
        store.read(digest, limit=5)
    path = store.blob(digest)
    path.chmod(0o644)
    path.write_bytes(b"012345678X")
    with pytest.raises(StoreError, match="is damaged"):
        store.read(digest)


def test_samples_lie_within_the_smallest_file_they_are_taken_of() -> None:
    assert blobs.SMALL >= 4 * 64 * 1024
