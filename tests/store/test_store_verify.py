from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelctl.store import Digest, NotFound, Store, media
from modelctl.store.verify import Report, verify


def _spoil(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_sound_store_has_no_problems(store: Store, build) -> None:
    store.write("tutor", build(b"base", os.urandom(3 << 20)))
    store.pin("tutor")
    seen: list[tuple[int, int]] = []
    report = verify(store, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.n_blobs == 4
    assert seen[-1] == (report.n_bytes, report.n_bytes)
    assert verify(Store(store.root / "nowhere")) == Report()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_bit_rot_is_found_named_and_moved(store: Store, build, damage: str) -> None:
    data = os.urandom(100_000)
    manifest = build(b"base", data)
    store.write("tutor", manifest)
    store.write("alias", manifest)
    store.write("healthy", build(b"base"))
    path = store.blob(Digest.of(data))
    spoilt = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b"", "longer": data + b"x"}[damage]
    _spoil(path, spoilt)
    problem = next(found for found in verify(store).problems if found.path == path)
    assert problem.models == ("alias:latest", "tutor:latest")
    assert path.exists(), "only --repair moves"
    repaired = next(found for found in verify(store, repair=True).problems if found.path == path)
    assert repaired.moved_to is not None
    assert repaired.moved_to.read_bytes() == spoilt
    assert [found.what for found in verify(store).problems] == ["missing"]
    assert {ref.name.model for ref in store.list()} == {"tutor", "alias", "healthy"}
    store.put(data)  # creating it again heals both
    assert verify(store).problems == []


def test_a_rotten_manifest_takes_its_name_only(store: Store, build) -> None:
    broken, healthy = store.write("broken", build(b"1")), store.write("healthy", build(b"2"))
    path = store.blob(broken.digest)
    _spoil(path, store.read(broken.digest).replace(b"2", b"3", 1))
    assert store.list() == [healthy]
    assert [damage.name.short for damage in store.damaged() if damage.name] == ["broken:latest"]
    found = {problem.path for problem in verify(store, repair=True).problems}
    assert found == {path, store.refs.root / "registry.ollama.ai/library/broken/latest"}
    assert verify(store).problems == []
    with pytest.raises(NotFound):
        store.resolve("broken")


def test_everything_foreign_is_found_and_only_moved(store: Store, build, canary: Path) -> None:
    store.write("tutor", build(b"base"))
    folder = store.blobs.path(Digest.of(b"folder"))
    folder.mkdir()
    link = store.blobs.path(Digest.of(b"link"))
    link.symlink_to(canary)
    foreign = [
        folder,
        link,
        store.blobs.folder / "sha256-short",
        store.root / "notes.txt",
        store.refs.root / "stray",
        store.refs.root / "registry.ollama.ai" / "library" / "tutor" / ".latest.swp",
        store.refs.root / "registry.ollama.ai" / "library" / "tutor" / "folder",
    ]
    for path in foreign[2:6]:
        path.write_text("mine")
    foreign[6].mkdir()
    assert {problem.path for problem in verify(store).problems} == set(foreign)
    moved = [problem.moved_to for problem in verify(store, repair=True).problems]
    assert all(path is not None and os.path.lexists(path) for path in moved)
    assert not any(os.path.lexists(path) for path in foreign)
    assert verify(store).problems == []
    assert len(store.list()) == 1


def test_a_pin_that_points_elsewhere_is_found(store: Store, build) -> None:
    store.write("tutor", build(b"1"))
    pinned = store.pin("tutor")
    other = store.write("other", build(b"2"))
    path = store.pins.locate(pinned.name)
    path.write_bytes(store.refs.locate(other.name).read_bytes())
    (problem,) = verify(store, repair=True).problems
    assert problem.path == path
    assert verify(store).problems == []


def test_a_wrong_size_in_a_manifest_is_found(store: Store, build) -> None:
    manifest = build(b"base")
    data = manifest.to_bytes().replace(b'"size":4', b'"size":5')
    store.point("tutor", store.put(data).digest)
    (problem,) = verify(store).problems
    assert "says 5" in problem.what
    assert problem.models == ("tutor:latest",)


def test_what_was_healed_meanwhile_is_not_moved(store: Store, build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create beside a long verify may replace what verify found wrong: its good blob and name must stay."""
    ref = store.write("tutor", build(b"base"))
    blob, name = store.blob(Digest.of(b"base")), store.refs.locate(ref.name)
    _spoil(blob, b"bas")
    name.write_bytes(b"")
    real = store.collecting

    def heal_first() -> object:
        store.put(b"base", size=4)
        store.write("tutor", ref.manifest)
        return real()

    monkeypatch.setattr(store, "collecting", heal_first)
    assert {problem.path for problem in verify(store, repair=True).problems} == {blob, name}
    assert store.read(Digest.of(b"base")) == b"base"
    assert store.resolve("tutor").digest == ref.digest
    assert not store.quarantine.exists()


def test_what_could_not_be_read_is_reported_and_not_moved(store: Store, build, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("tutor", build(b"base"))

    def readv(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", readv)
    report = verify(store, repair=True)
    assert {problem.what for problem in report.problems} == {"cannot be read: Input/output error"}
    assert [problem.moved_to for problem in report.problems] == [None] * 3
    assert len(store.list()) == 1


def test_an_interrupted_run_is_taken_up(store: Store) -> None:
    for n in range(8):
        store.put(bytes([n]) * (2 << 20))

    def interrupt(done: int, total: int) -> None:
        if done > 7 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(store, progress=interrupt, n_threads=1)
    changed = store.blob(Digest.of(bytes([0]) * (2 << 20)))
    resumed = verify(store)
    assert 0 < resumed.n_resumed < 8
    assert verify(store).n_resumed == 0, "a complete run starts from the beginning"
    with pytest.raises(KeyboardInterrupt):
        verify(store, progress=interrupt, n_threads=1)
    _spoil(changed, b"x")
    assert [problem.path for problem in verify(store).problems] == [changed], "what changed since is read again"
    with pytest.raises(KeyboardInterrupt):
        verify(store, progress=interrupt, n_threads=1)
    assert verify(store, resume=False).n_resumed == 0


def test_it_runs_beside_writers_and_keeps_gc_out(store: Store, build) -> None:
    from modelctl.store import Locked
    from modelctl.store.collect import collect

    store.write("tutor", build(b"base"))

    def meanwhile(done: int, total: int) -> None:
        store.put(b"while it runs")
        with pytest.raises(Locked):
            collect(Store(store.root, patience=0), grace=0)

    assert verify(store, progress=meanwhile).problems == []


def test_du(store: Store, build) -> None:
    from modelctl.store.usage import usage

    first = build(b"shared base", b"own 1")
    store.write("one", first)
    store.write("two", build(b"shared base", b"own two"))
    store.put(b"garbage")
    found = usage(store)
    one, two = (next(model for model in found.models if model.name.model == name) for name in ("one", "two"))
    assert one.n_bytes == first.size + len(first.to_bytes())
    assert one.n_own == len(b"own 1") + len(first.to_bytes())
    assert one.n_shared == len(b"shared base{}") == two.n_shared
    assert (found.n_garbage, found.n_garbage_blobs) == (7, 1)
    assert found.n_bytes == sum(path.stat().st_size for path in store.blobs.folder.iterdir())
    store.copy("one", "alias")
    assert all(model.n_own == 0 for model in usage(store).models if model.name.model in ("one", "alias"))
    assert first.of_type(media.MODEL)
