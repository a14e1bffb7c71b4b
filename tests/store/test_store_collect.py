from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modelctl.store import Corrupt, Store
from modelctl.store.collect import Collected, collect, reachable


def _blobs(store: Store) -> set[str]:
    return {path.name for path in store.blobs.folder.iterdir()}


def test_only_what_no_name_and_no_pin_reaches_goes(store: Store, build) -> None:
    first = store.write("tutor", build(b"shared", b"1"))
    store.pin("tutor")
    second = store.write("tutor", build(b"shared", b"2"))
    third = store.write("other", build(b"shared", b"3"))
    garbage = store.put(b"garbage")
    found = collect(store, grace=0)
    assert found.blobs == [garbage.digest]
    assert found.n_bytes == garbage.size
    assert _blobs(store) == {digest.filename for digest in reachable([first, second, third])}
    store.remove(f"tutor@{first.digest}")
    store.remove("other")
    collect(store, grace=0)
    assert _blobs(store) == {digest.filename for digest in reachable([second])}


def test_a_dry_run_says_the_same_and_removes_nothing(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    store.put(b"garbage")
    before = _blobs(store)
    plan = collect(store, grace=0, dry_run=True)
    assert _blobs(store) == before
    assert collect(store, grace=0) == plan


def test_young_blobs_stay_whatever_their_mtime(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old file")
    os.utime(tmp_path / "file", (0, 0))
    store.put(tmp_path / "file", link=True)
    store.put(b"garbage")
    assert collect(store).n_young == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    store_again = store.put(b"garbage")  # using it makes it young: ctime, which the clock above does not reach
    assert store_again.existed
    monkeypatch.setattr(time, "time", lambda: now - 86400)  # the clock was set back
    assert collect(store).n_young == 2
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert len(collect(store).blobs) == 2


def test_a_damaged_name_stops_it(store: Store, build) -> None:
    ref = store.write("tutor", build(b"base"))
    store.refs.locate(ref.name).write_bytes(b"")
    before = _blobs(store)
    with pytest.raises(Corrupt, match="nobody knows which blobs tutor:latest needs") as caught:
        collect(store, grace=0)
    assert "--force" in (caught.value.hint or "")
    assert _blobs(store) == before
    collect(store, grace=0, force=True)
    assert _blobs(store) == set()


def test_a_folder_of_names_that_cannot_be_read_stops_it(store: Store, build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking it for empty would cost every model in it."""
    store.write("tutor", build(b"base"))
    before = _blobs(store)
    real = os.scandir

    def scandir(path: object = ".") -> object:
        if str(path).endswith("/library"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Corrupt, match="cannot be listed") as caught:
        collect(store, grace=0)
    assert "--force" not in (caught.value.hint or ""), "nobody is told to give up what may be sound"
    assert _blobs(store) == before


def test_names_behind_a_link_stop_it(store: Store, build, tmp_path: Path) -> None:
    store.write("tutor", build(b"base"))
    before = _blobs(store)
    folder = store.refs.root / "registry.ollama.ai"
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(Corrupt, match="symbolic link"):
        collect(store, grace=0)
    assert _blobs(store) == before


def test_foreign_files_and_links_stay(store: Store, build, canary: Path) -> None:
    store.write("tutor", build(b"base"))
    foreign = store.blobs.folder / "notes.txt"
    foreign.write_text("mine")
    link = store.blobs.folder / f"sha256-{'0' * 64}"
    link.symlink_to(canary)
    assert sorted(collect(store, grace=0).foreign) == sorted([foreign, link])
    assert foreign.exists()
    assert link.is_symlink()


def test_it_removes_folders_that_a_killed_rm_left(store: Store, build) -> None:
    store.write("me/tutor", build(b"base"))
    store.refs.locate(store.list()[0].name).unlink()
    collect(store, grace=0)
    assert list(store.refs.root.iterdir()) == []


def test_nothing_to_do_without_a_store(store: Store) -> None:
    assert collect(store) == Collected()
    assert not store.root.exists()
