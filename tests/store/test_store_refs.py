"""Names: written last and whole, whatever their case, copied, removed, pinned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelctl.store import Corrupt, Digest, Exists, InvalidName, Layer, Manifest, NotFound, Store, StoreError, media
from modelctl.store.archive import check_free
from modelctl.store.names import ModelName


def test_write_then_resolve(store: Store, build) -> None:
    manifest = build(b"base", b"adapter")
    written = store.write("tutor", manifest)
    found = store.resolve("tutor:latest")
    assert found == written
    assert (found.manifest, found.digest) == (manifest, manifest.digest)
    assert store.read(found.digest) == manifest.to_bytes()
    assert found.modified == pytest.approx(store.refs.locate(found.name).stat().st_mtime)
    assert Store(store.root).list() == [found]


def test_a_store_that_is_not_there_is_empty(store: Store) -> None:
    assert store.list() == []
    assert store.damaged() == ()
    with pytest.raises(NotFound, match="no model 'tutor:latest'"):
        store.resolve("tutor")
    assert not store.root.exists()


def test_a_manifest_needs_all_its_blobs(store: Store, build) -> None:
    absent = Layer(media.MODEL, Digest.of(b"absent"), 6)
    with pytest.raises(NotFound, match=str(absent.digest)):
        store.write("tutor", Manifest(build().config, (absent,)))
    wrong = Layer(media.MODEL, store.put(b"12345").digest, 6)
    with pytest.raises(Corrupt, match="has 5 bytes, its manifest says 6"):
        store.write("tutor", Manifest(build().config, (wrong,)))
    assert store.list() == []


def test_names_match_whatever_their_case_and_never_fork(store: Store, build) -> None:
    first = store.write("Me/Tutor:V1", build(b"1"))
    second = store.write("mE/tutor:v1", build(b"2"))
    assert first.name == second.name == store.resolve("me/TUTOR:v1").name
    assert [ref.digest for ref in store.list()] == [second.digest]
    store.remove("ME/TUTOR:V1")
    assert store.list() == []


def test_list_is_newest_first(store: Store, build) -> None:
    for at, name in enumerate(("a", "b", "c")):
        ref = store.write(name, build(name.encode()))
        os.utime(store.refs.locate(ref.name), (at, at))
    assert [ref.name.model for ref in store.list()] == ["c", "b", "a"]


def test_copy_shares_everything(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    before = set(store.blobs.folder.iterdir())
    assert store.copy("tutor", "me/other:v2").digest == store.resolve("tutor").digest
    assert set(store.blobs.folder.iterdir()) == before
    with pytest.raises(NotFound):
        store.copy("nobody", "x")


def test_remove_takes_the_name_and_its_empty_folders(store: Store, build) -> None:
    store.write("me/tutor:v1", build(b"base"))
    store.write("me/tutor:v2", build(b"base"))
    store.remove("me/tutor:v1")
    assert [ref.name.tag for ref in store.list()] == ["v2"]
    store.remove("me/tutor:v2")
    assert list(store.refs.root.iterdir()) == []
    with pytest.raises(NotFound):
        store.remove("me/tutor:v2")


def test_a_pin_outlives_its_name(store: Store, build) -> None:
    first = store.write("tutor", build(b"1"))
    pinned = f"tutor@{first.digest}"
    assert store.resolve(pinned).digest == first.digest  # it is the current one
    assert str(store.pin("tutor").name) == f"registry.ollama.ai/library/tutor:latest@{first.digest}"
    second = store.write("tutor", build(b"2"))
    assert store.resolve("tutor").digest == second.digest
    assert store.resolve(f"TUTOR@{first.digest}").digest == first.digest
    assert store.copy(pinned, "first").digest == first.digest
    store.remove("tutor")
    assert store.resolve(pinned).manifest == first.manifest
    assert [ref.digest for ref in store.pinned()] == [first.digest]
    store.remove(pinned)
    with pytest.raises(NotFound):
        store.resolve(pinned)


def test_a_pinned_name_never_means_anything_else(store: Store, build) -> None:
    first, second = store.write("tutor", build(b"1")), store.write("tutor", build(b"2"))
    for name in (f"tutor@{first.digest}", f"other@{second.digest}"):
        with pytest.raises(NotFound):
            store.resolve(name)
        with pytest.raises(StoreError):
            store.write(name, first.manifest)


def test_a_name_too_long_for_the_file_system_is_said_to_be(store: Store, build) -> None:
    with pytest.raises(InvalidName, match="shorter"):
        store.write(f"{'h' * 300}/n/m", build(b"base"))
    assert store.list() == []


def test_a_link_in_the_tree_of_names_is_not_followed(store: Store, build, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.write("tutor", build(b"base"))
    (store.refs.root / "evil").symlink_to(outside)
    for act in (store.resolve, store.remove, lambda name: store.write(name, build(b"base"))):
        with pytest.raises(Corrupt, match="symbolic link"):
            act("evil/n/m")
    assert list(outside.iterdir()) == []
    assert len(store.list()) == 1


def test_an_import_does_not_replace_another_model(store: Store, build) -> None:
    ref = store.write("tutor", build(b"1"))
    name = ModelName.parse("Tutor")
    check_free(store, name, ref.digest, replace=False)
    check_free(store, name, Digest.of(b"other"), replace=True)
    with pytest.raises(Exists, match="another model 'tutor:latest'"):
        check_free(store, name, Digest.of(b"other"), replace=False)


def test_a_newer_format_is_read_and_not_written(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    (store.root / "format").write_text("2\n")
    assert len(store.list()) == 1
    for act in (lambda: store.put(b"x"), lambda: store.remove("tutor"), lambda: store.copy("tutor", "b")):
        with pytest.raises(StoreError, match="format 2, newer"):
            act()
