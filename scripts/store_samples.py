"""What the fault scripts do, each in a folder `work` with a store, source files, an archive and an Ollama store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from modelctl.store import Layer, Manifest, Store, archive, media, ollama
from modelctl.store import verify as verifying
from modelctl.store.collect import collect


def _store(work: Path) -> Store:
    """Impatient: a `close` that fails by injection leaves a lock held, which no real one does."""
    return Store(work / "store", patience=1)


def _create(work: Path) -> None:
    store = _store(work)
    with store.writing():
        base, adapter = store.put(work / "base.gguf"), store.put(work / "adapter.gguf", link=True)
        config = store.put(b'{"model_format":"gguf"}')
        layers = (Layer(media.MODEL, base.digest, base.size), Layer(media.ADAPTER, adapter.digest, adapter.size))
        store.write("new", Manifest(Layer(media.CONFIG, config.digest, config.size), layers))


def _update(work: Path) -> None:
    store = _store(work)
    store.write("old", model(store, b"shared", b"a new layer"))


def _import(work: Path) -> None:
    with (work / "model.tar").open("rb") as file:
        archive.import_(_store(work), file)


def _from_ollama(work: Path) -> None:
    for one in ollama.import_models(_store(work), work / "ollama"):
        if one.error:
            raise one.error


def _verify(work: Path) -> None:
    """In one thread, since strace counts the calls of each thread by themselves."""
    with mock.patch.object(verifying, "ThreadPoolExecutor", InThisThread):
        verifying.verify(_store(work), repair=True)


class InThisThread:
    def __init__(self, n_threads: int) -> None: ...

    def __enter__(self) -> InThisThread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, act: Callable[[object], object], items: list[object]) -> Iterator[object]:
        return map(act, items)

    def shutdown(self, **_: bool) -> None: ...


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "create": _create,
    "update": _update,
    "import": _import,
    "ollama": _from_ollama,
    "copy": lambda work: _store(work).copy("old", "copied"),
    "rm": lambda work: _store(work).remove("old"),
    "pin": lambda work: _store(work).pin("old"),
    "gc": lambda work: collect(_store(work), grace=0),
    "verify": _verify,
}


def model(store: Store, *layers: bytes) -> Manifest:
    config = store.put(b"{}")
    stored = [store.put(data) for data in layers]
    return Manifest(
        Layer(media.CONFIG, config.digest, config.size),
        tuple(Layer(media.MODEL, put.digest, put.size) for put in stored),
    )


def prepare(work: Path) -> None:
    """A store with two models that share a layer, garbage, litter of a dead process and a rotten blob nobody needs."""
    work.mkdir()
    (work / "canary").write_bytes(b"untouched")
    (work / "base.gguf").write_bytes(os.urandom(300_000))
    (work / "adapter.gguf").write_bytes(os.urandom(5_000))
    _prepare_archive(work)
    _prepare_ollama(work / "ollama")
    store = _store(work)
    store.write("keep", model(store, b"shared", b"only in keep"))
    store.write("old", model(store, b"shared", b"only in old"))
    store.put(b"garbage")
    litter = store.staging / "99999999.1700000000.modelctl-create.00000000"
    litter.mkdir()
    (litter / "0").write_bytes(b"half a blob")
    rotten = store.blob(store.put(b"rotten").digest)
    rotten.chmod(0o644)
    rotten.write_bytes(b"Rotten")


def _prepare_archive(work: Path) -> None:
    other = Store(work / "other")
    other.write("imported", model(other, b"shared", b"came in a tar"))
    with (work / "model.tar").open("wb") as file:
        archive.export(other, "imported", file)


def _prepare_ollama(folder: Path) -> None:
    (folder / "blobs").mkdir(parents=True)

    def layer(media_type: str, data: bytes) -> dict[str, object]:
        hex_digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / f"sha256-{hex_digest}").write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": len(data)}

    tag = folder / "manifests" / "registry.ollama.ai" / "library" / "stranded" / "latest"
    tag.parent.mkdir(parents=True)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": layer(media.CONFIG, b"{}"),
        "layers": [layer(media.MODEL, b"ollama's base"), layer(media.ADAPTER, b"ollama's adapter")],
    }
    tag.write_text(json.dumps(manifest))
