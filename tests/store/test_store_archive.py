"""export and import: what goes out comes back, and nothing an archive says becomes a path."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelctl.store import (
    BadArchive,
    Corrupt,
    Digest,
    Exists,
    Mismatch,
    NotFound,
    Store,
    StoreError,
    archive,
    media,
    tar,
)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def _exported(store: Store, name: str) -> bytes:
    out = io.BytesIO()
    archive.export(store, name, out)
    return out.getvalue()


def _pack(
    files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda info: None, **kind: int
) -> io.BytesIO:
    """An archive by the standard library's hand."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **kind) as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            packed.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def _unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        return {info.name: packed.extractfile(info).read() for info in packed}


def test_a_model_comes_back_bit_for_bit(store: Store, other: Store, build) -> None:
    ref = store.write("me/tutor:v1", build(b"base", os.urandom(3 << 20), b""))
    data = _exported(store, "me/tutor:v1")
    seen: list[int] = []
    (back,) = archive.import_(other, io.BytesIO(data), progress=lambda done, total: seen.append(done))
    assert (back.name, back.digest, back.manifest) == (ref.name, ref.digest, ref.manifest)
    assert {path.name for path in other.blobs.folder.iterdir()} == {path.name for path in store.blobs.folder.iterdir()}
    assert seen == sorted(seen)
    assert len(data) - 1024 <= seen[-1] <= len(data)
    assert _exported(other, "me/tutor:v1") == data, "equal models make equal archives"
    assert archive.import_(other, io.BytesIO(data)) == [other.resolve("me/tutor:v1")]


def test_the_archive_is_an_oci_layout_that_tar_can_read(store: Store, build, tmp_path: Path) -> None:
    ref = store.write("tutor", build(b"base"))
    (tmp_path / "model.tar").write_bytes(_exported(store, "tutor"))
    subprocess.run(["tar", "-xf", "model.tar"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (descriptor,) = json.loads((tmp_path / "index.json").read_text())["manifests"]
    assert descriptor["digest"] == str(ref.digest)
    assert descriptor["annotations"]["org.opencontainers.image.ref.name"] == str(ref.name)
    for blob in (tmp_path / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_hands_are_read(store: Store, other: Store, build, kind: int) -> None:
    ref = store.write("tutor", build(b"base"))
    files = {f"./{name}": data for name, data in _unpacked(_exported(store, "tutor")).items()}
    files["./" + "long/" * 30 + "name"] = b"ignored"
    files["../../evil"] = b"ignored"
    files["/etc/evil"] = b"ignored"
    packed = _pack(dict(reversed(files.items())), format=kind)
    (back,) = archive.import_(other, packed)
    assert back.digest == ref.digest
    assert sorted(path.name for path in other.root.iterdir()) == sorted(path.name for path in store.root.iterdir())


def test_sizes_beyond_eight_gigabytes_fit_the_header() -> None:
    for size in (0, 8**11 - 1, 8**11, 1 << 50):
        info = tarfile.TarInfo.frombuf(tar.header("blobs/sha256/x", size), "utf-8", "strict")
        assert (info.name, info.size, info.isreg()) == ("blobs/sha256/x", size, True)
        head = io.BytesIO(tar.header("name", size) + bytes(512))
        assert next(tar.members(head)).size == size


def test_another_name_or_another_model_of_that_name(store: Store, other: Store, build) -> None:
    store.write("tutor", build(b"1"))
    data = _exported(store, "tutor")
    (first,) = archive.import_(other, io.BytesIO(data), name="me/renamed")
    assert [ref.name.short for ref in other.list()] == ["me/renamed:latest"]
    store.write("tutor", build(b"2"))
    changed = _exported(store, "tutor")
    with pytest.raises(Exists, match="another model 'me/renamed:latest'"):
        archive.import_(other, io.BytesIO(changed), name="me/renamed")
    assert other.resolve("me/renamed").digest == first.digest
    (replaced,) = archive.import_(other, io.BytesIO(changed), name="me/renamed", replace=True)
    assert other.resolve("me/renamed").digest == replaced.digest != first.digest


def _links(info: tarfile.TarInfo, kind: bytes) -> None:
    if info.name.startswith("blobs"):
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"Z"])
def test_links_and_devices_are_refused(store: Store, other: Store, build, kind: bytes, canary: Path) -> None:
    store.write("tutor", build(b"base"))
    packed = _pack(_unpacked(_exported(store, "tutor")), lambda info: _links(info, kind))
    with pytest.raises(BadArchive, match="link or a special file"):
        archive.import_(other, packed)
    assert other.list() == []


@pytest.mark.parametrize(
    "name", ["../../canary", "..%2f", "A" * 64, "a" * 63, "a" * 65, f"{'a' * 64}/x", f"../sha256/{'a' * 64}", ""]
)
def test_blobs_with_other_names_are_refused(other: Store, canary: Path, name: str) -> None:
    with pytest.raises(BadArchive, match="not named like a blob"):
        archive.import_(other, _pack({f"blobs/sha256/{name}": b"evil"}))
    assert [path for path in other.root.rglob("*") if path.is_file() and path.read_bytes() == b"evil"] == []


def test_wrong_bytes_are_refused(store: Store, other: Store, build) -> None:
    store.write("tutor", build(b"base"))
    files = _unpacked(_exported(store, "tutor"))
    name = f"blobs/sha256/{Digest.of(b'base').hex}"
    with pytest.raises(Mismatch):
        archive.import_(other, _pack({**files, name: b"EVIL"}))
    assert other.list() == []
    assert not other.has(Digest.of(b"EVIL"))


def test_a_missing_blob_is_refused_unless_it_is_here(store: Store, other: Store, build) -> None:
    store.write("tutor", build(b"base"))
    files = _unpacked(_exported(store, "tutor"))
    del files[f"blobs/sha256/{Digest.of(b'base').hex}"]
    with pytest.raises(BadArchive, match="incomplete or damaged"):
        archive.import_(other, _pack(files))
    assert other.list() == []
    other.put(b"base")
    assert len(archive.import_(other, _pack(files))) == 1


@pytest.mark.parametrize("n", [1, 511, 512, 700, 1536, 2000, -1100])
def test_a_cut_archive_is_refused(store: Store, other: Store, build, n: int) -> None:
    store.write("tutor", build(b"base" * 300))
    with pytest.raises(BadArchive):
        archive.import_(other, io.BytesIO(_exported(store, "tutor")[:n]))
    assert other.list() == []
    assert list(other.staging.iterdir()) == []


@pytest.mark.parametrize(
    "index",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b'{"manifests": []}',
        b'{"manifests": {}}',
        b'{"manifests": [5]}',
        b'{"manifests": [{"mediaType": "x", "digest": "sha256:../x", "size": 1}]}',
        json.dumps({"manifests": [{"mediaType": media.INDEX, "digest": str(Digest.of(b"x")), "size": 1}]}).encode(),
        json.dumps({"manifests": [{"mediaType": media.MANIFEST, "digest": str(Digest.of(b"x")), "size": 1}]}).encode(),
        b" " * (5 << 20),
    ],
)
def test_a_bad_index_is_refused(store: Store, other: Store, build, index: bytes | None) -> None:
    store.write("tutor", build(b"base"))
    files = _unpacked(_exported(store, "tutor"))
    files.pop("index.json")
    with pytest.raises(BadArchive):
        archive.import_(other, _pack(files if index is None else {**files, "index.json": index}))
    assert other.list() == []


def test_names_in_the_index_are_only_names(store: Store, other: Store, build) -> None:
    store.write("tutor", build(b"base"))
    files = _unpacked(_exported(store, "tutor"))
    for name in ("../../evil", "a b", "/etc/passwd", ""):
        index = json.loads(files["index.json"])
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = name
        with pytest.raises(BadArchive, match="calls a model"):
            archive.import_(other, _pack({**files, "index.json": json.dumps(index).encode()}))
    del index["manifests"][0]["annotations"]
    unnamed = {**files, "index.json": json.dumps(index).encode()}
    with pytest.raises(BadArchive, match="does not say what the model is called"):
        archive.import_(other, _pack(unnamed))
    assert len(archive.import_(other, _pack(unnamed), name="named")) == 1


def test_headers_that_ask_for_memory_are_refused(other: Store) -> None:
    def bomb(kind: bytes, size: int) -> io.BytesIO:
        info = tarfile.TarInfo("bomb")
        info.type, info.size = kind, size
        return io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))

    for kind in (b"x", b"L"):
        with pytest.raises(BadArchive, match="too long"):
            archive.import_(other, bomb(kind, 1 << 40))
    for record in (b"30 GNU.sparse.realsize=999999\n", b"x", b"99 path=x\n", b"5 ab\n", b"10 path=a\n"):
        info = tarfile.TarInfo("pax")
        info.type, info.size = b"x", len(record)
        with pytest.raises(BadArchive):
            archive.import_(other, io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")))


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08" + bytes(700), b"PK\x03\x04" + os.urandom(700), b"GGUF" + bytes(900)])
def test_other_formats_are_named_as_such(other: Store, data: bytes) -> None:
    with pytest.raises(BadArchive, match="no tar archive"):
        archive.import_(other, io.BytesIO(data))


def test_no_fuzzed_archive_gets_past(store: Store, other: Store, build) -> None:
    """Any one bit flipped: it is refused with a typed error, or it did not matter to the model."""
    ref = store.write("tutor", build(b"base"))
    data = bytearray(_exported(store, "tutor"))
    for at in range(0, len(data), 31):
        data[at] ^= 0x10
        try:
            found = archive.import_(other, io.BytesIO(bytes(data)), name="fuzzed", replace=True)
            assert found[0].digest == ref.digest
        except StoreError:
            pass
        data[at] ^= 0x10


def test_a_damaged_model_is_not_exported(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    path = store.blob(Digest.of(b"base"))
    path.chmod(0o644)
    path.write_bytes(b"BASE")
    with pytest.raises(Corrupt, match="is damaged"):
        _exported(store, "tutor")
    path.unlink()
    with pytest.raises(NotFound):
        _exported(store, "tutor")
