"""Hostile digests and names at every door: library, files on disk, archives, Ollama's store, commands, daemon."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from modelctl import config
from modelctl.cli import invoke
from modelctl.daemon.app import ROUTES
from modelctl.store import Layer, Manifest, Store, StoreError, archive, media, ollama
from tests.daemon.conftest import Daemon
from tests.gguf_check.gguf_files import tiny_base
from tests.store.traversal import BAD_DIGESTS, BAD_NAMES, HEX

SIZE = len(b"untouched")


@pytest.fixture
def store(home: Path) -> Store:
    return Store(config.load().store_root)


@pytest.fixture(autouse=True)
def nothing_outside_changes(store: Store, canary: Path, tmp_path: Path) -> Iterator[None]:
    """Beside the canary's own checks: nothing new lies beside the store, and none in it holds the canary's bytes."""
    yield
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside <= {"canary", "modelctl-home", "ollama", "inputs"}, outside
    for path in store.root.rglob("*"):
        assert not path.is_symlink()
        assert not path.is_file() or b"untouched" not in path.read_bytes()


def _layer(digest: str) -> dict[str, object]:
    return {"mediaType": media.MODEL, "digest": digest, "size": SIZE}


def _manifest(store: Store, digest: str) -> bytes:
    config_layer = {"mediaType": media.CONFIG, "digest": str(store.put(b"{}").digest), "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config_layer, "layers": [_layer(digest)]}).encode()


def _by_pin(store: Store, digest: str, act: str) -> None:
    getattr(store, act)(f"tutor@{digest}")


def _by_name_file(store: Store, digest: str) -> None:
    path = store.refs.locate(store.list()[0].name)
    path.write_text(json.dumps({**_layer(digest), "mediaType": media.MANIFEST}))
    store.resolve("tutor")


def _by_manifest(store: Store, digest: str) -> None:
    store.point("evil", store.put(_manifest(store, digest)).digest)


def _by_archive(store: Store, files: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    packed.seek(0)
    archive.import_(store, packed, name="evil")


def _by_index(store: Store, digest: str) -> None:
    _by_archive(store, {"index.json": json.dumps({"manifests": [_layer(digest)]}).encode()})


def _by_packed_manifest(store: Store, digest: str) -> None:
    data = _manifest(store, digest)
    hex_digest = hashlib.sha256(data).hexdigest()
    index = {"mediaType": media.MANIFEST, "digest": f"sha256:{hex_digest}", "size": len(data)}
    files = {"index.json": json.dumps({"manifests": [index]}).encode(), f"blobs/sha256/{hex_digest}": data}
    _by_archive(store, files)


def _by_ollama(store: Store, digest: str) -> None:
    folder = store.root.parents[1] / "ollama"
    (folder / "blobs").mkdir(parents=True)
    tag = folder / "manifests" / "registry.ollama.ai" / "library" / "evil" / "latest"
    tag.parent.mkdir(parents=True)
    tag.write_bytes(_manifest(store, digest))
    (found,) = ollama.import_models(store, folder)
    if found.error:
        raise found.error


DOORS: dict[str, Callable[[Store, str], None]] = {
    **{act: lambda store, digest, act=act: _by_pin(store, digest, act) for act in ("resolve", "remove", "pin")},
    "name file": _by_name_file,
    "manifest": _by_manifest,
    "index": _by_index,
    "packed manifest": _by_packed_manifest,
    "ollama": _by_ollama,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("digest", [*BAD_DIGESTS, "sha256:../../canary", "sha256-../../../canary"])
def test_a_hostile_digest_leads_nowhere(store: Store, build, digest: str, door: str) -> None:
    ref = store.write("tutor", build(b"base"))
    before = sorted(store.blobs.folder.iterdir())
    with pytest.raises(StoreError):
        DOORS[door](store, digest)
    assert [found.name.model for found in (*store.list(), *store.pinned())] in (["tutor"], [])
    assert set(before) <= set(store.blobs.folder.iterdir())
    store.write("tutor", ref.manifest)


@pytest.fixture
def tutor(store: Store, tmp_path: Path) -> Path:
    """`tutor` is in the store, made of a tiny base; the folder holds a Modelfile on top of it, and an archive of it."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    base = store.put(tiny_base().build())
    settings = store.put(b"{}")
    layer = Layer(media.MODEL, base.digest, base.size)
    store.write("tutor", Manifest(Layer(media.CONFIG, settings.digest, settings.size), (layer,)))
    (folder / "Modelfile").write_text("FROM tutor\nSYSTEM Be brief.\n")
    with (folder / "tutor.tar").open("wb") as out:
        archive.export(store, "tutor", out)
    return folder


def _commands(folder: Path, name: str) -> list[list[str]]:
    return [
        ["show", name],
        ["rm", name],
        ["pin", name],
        ["cp", name, "fine"],
        ["cp", "tutor", name],
        ["export", name, str(folder / "out.tar")],
        ["import", str(folder / "tutor.tar"), "--as", name],
        ["create", name, "-f", str(folder / "Modelfile")],
    ]


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_no_command_follows_a_hostile_name(
    store: Store, tutor: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in _commands(tutor, name):
        assert invoke(command) in (1, 2), command
        said = capsys.readouterr().err
        assert said and "Traceback" not in said
    assert [ref.name.short for ref in (*store.list(), *store.pinned())] == ["tutor:latest"]
    assert sorted(path.name for path in tutor.iterdir()) == ["Modelfile", "tutor.tar"]


def test_the_commands_do_follow_a_good_name(store: Store, tutor: Path) -> None:
    """Or the refusals above would prove nothing."""
    for command in _commands(tutor, "tutor"):
        assert command[0] == "rm" or invoke(command) == 0, command


def test_no_route_follows_a_hostile_name(store: Store, tutor: Path) -> None:
    """`source` and `destination` are what copy asks for; a `+` in the others begins a mix."""
    rest = {
        "prompt": "hi",
        "input": "hi",
        "content": "hi",
        "tokens": [1],
        "messages": [{"role": "user", "content": "x"}],
    }
    daemon = Daemon(store.root.parent)
    try:
        for name in BAD_NAMES:
            ways = [{"model": name, "name": name, "source": name, "destination": "fine"}]
            ways += [{"model": name, "source": "tutor", "destination": name}]
            for route in ROUTES:
                for method in route.methods & {"POST", "DELETE"}:
                    for body in ways:
                        _expect_refusal(
                            requests.request(method, daemon.url + route.path, json={**rest, **body}, timeout=20)
                        )
            if name:
                _expect_refusal(daemon.get(f"/v1/models/{quote(name, safe='')}"))
        assert [ref.name.short for ref in store.list()] == ["tutor:latest"]
    finally:
        assert daemon.stop() == 0


def _expect_refusal(response: requests.Response) -> None:
    assert response.status_code in (400, 404), (response.request.url, response.request.body, response.text)
    assert "modelctl-home" not in response.text, "no path of ours"
    assert response.json()["error"]


def test_a_pinned_name_with_the_right_digest_is_no_way_around(store: Store, build) -> None:
    store.write("tutor", build(b"base"))
    for name in ("../canary", "a/../../canary", "..", "/canary"):
        with pytest.raises(StoreError, match="not a model name"):
            store.resolve(f"{name}@sha256:{HEX}")
