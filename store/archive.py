"""export and import: one model as an OCI image layout in a tar, streamed both ways.

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            one descriptor: the manifest, annotated with the model's name
    blobs/sha256/<hex>    the manifest, the config and the layers

Other tools that read OCI layouts (oras, skopeo, podman) read it too. Equal models make equal archives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from . import media, tar
from .digest import Digest
from .errors import BadArchive, Corrupt, Exists, NotFound, StoreError
from .manifest import MAX_BYTES, Layer, Manifest, parse_json
from .names import ModelName
from .store import Ref, Store

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0 when unknown)

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOBS = "blobs/sha256/"


def export(store: Store, name: str | ModelName, out: BinaryIO, progress: Progress | None = None) -> Ref:
    """Writes the model to `out`, each blob checked against its digest on the way. Raises `NotFound` or `Corrupt`; what
    was written by then is worthless."""
    with store.reading():
        ref = store.resolve(name)
        store.check_layers(ref.manifest)
        writer = _Writer(store, out, ref.manifest.size, progress)
        writer.small("oci-layout", LAYOUT)
        writer.small("index.json", _index(ref, store))
        writer.small(_BLOBS + ref.digest.hex, store.read(ref.digest))
        for layer in _once(ref.manifest):
            writer.blob(layer)
        out.write(bytes(2 * tar.BLOCK))
    return ref


def import_(
    store: Store,
    archive: BinaryIO,
    *,
    name: str | ModelName | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> list[Ref]:
    """Stores every model of an archive, under the names it gives them or, for a single one, `name`.

    Names are written last and only when everything is there and sound. Raises `BadArchive`, or `Exists` when a name is
    taken by a different model and `replace` is False. `progress` counts bytes of the archive.
    """
    with store.writing():
        found = _Contents()
        for member in tar.members(cast(BinaryIO, _Counted(archive, progress))):
            _take(store, member, found)
        targets = _targets(found, name)
        for target, digest in targets:
            check_free(store, target, digest, replace)
            _check_complete(store, digest)
        return [store.point(target, digest) for target, digest in targets]


def check_free(store: Store, name: ModelName, digest: Digest, replace: bool) -> None:
    """Raises `Exists` if another model has the name and may not be replaced."""
    if replace:
        return
    try:
        there = store.resolve(name)
    except NotFound:
        return
    if there.digest != digest:
        raise Exists(
            f"there is another model {there.name.short!r} ({there.digest.short}, this one is {digest.short})",
            hint="import it under another name with --as, or replace that one with --force",
        )


@dataclass
class _Contents:
    blobs: set[Digest] = field(default_factory=set)
    index: bytes | None = None


class _Counted:
    """An archive that tells how much of it has been read."""

    def __init__(self, archive: BinaryIO, progress: Progress | None) -> None:
        self._archive, self._progress = archive, progress
        self._done = 0

    def read(self, n: int) -> bytes:
        data = self._archive.read(n)
        self._done += len(data)
        if self._progress:
            self._progress(self._done, 0)
        return data


class _Writer:
    """Tar on its way out."""

    def __init__(self, store: Store, out: BinaryIO, total: int, progress: Progress | None) -> None:
        self._store, self._out, self._total, self._progress = store, out, total, progress
        self._done = 0

    def small(self, name: str, data: bytes) -> None:
        self._out.write(tar.header(name, len(data)) + data + bytes(-len(data) % tar.BLOCK))

    def blob(self, layer: Layer) -> None:
        sha = hashlib.sha256()
        self._out.write(tar.header(_BLOBS + layer.digest.hex, layer.size))
        with self._store.blobs.open(layer.digest) as blob:
            while data := blob.read(tar.CHUNK):
                sha.update(data)
                self._out.write(data)
                self._advance(len(data))
        if sha.hexdigest() != layer.digest.hex:
            raise Corrupt(f"blob {layer.digest} is damaged", hint="run `modelctl verify`")
        self._out.write(bytes(-layer.size % tar.BLOCK))

    def _advance(self, n: int) -> None:
        self._done += n
        if self._progress:
            self._progress(self._done, self._total)


def _once(manifest: Manifest) -> list[Layer]:
    return list({layer.digest: layer for layer in manifest}.values())


def _index(ref: Ref, store: Store) -> bytes:
    size = store.blobs.stat(ref.digest).st_size
    descriptor = Layer(media.MANIFEST, ref.digest, size, {media.REF_NAME: str(ref.name.unpinned)})
    index = {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [descriptor.to_json()]}
    return json.dumps(index, sort_keys=True, separators=(",", ":")).encode()


def _take(store: Store, member: tar.Member, found: _Contents) -> None:
    """Only the two kinds of names that mean something are looked at, and no name becomes a path."""
    name = member.name.removeprefix("./")
    if name == "index.json":
        if member.size > MAX_BYTES:
            raise BadArchive(f"its index.json has {member.size} bytes, more than the {MAX_BYTES} allowed")
        found.index = member.read()
    elif name.startswith(_BLOBS):
        digest = _named(name)
        store.put(cast(BinaryIO, member), expected=digest, size=member.size)
        found.blobs.add(digest)


def _named(name: str) -> Digest:
    try:
        return Digest(name.removeprefix(_BLOBS))
    except StoreError:
        raise BadArchive(f"{name!r:.200} is not named like a blob") from None


def _targets(found: _Contents, name: str | ModelName | None) -> list[tuple[ModelName, Digest]]:
    if found.index is None:
        raise BadArchive("it has no index.json", hint="expected an OCI image layout, as `modelctl export` writes it")
    models = _descriptors(found.index)
    for model in models:
        if model.digest not in found.blobs:
            raise BadArchive(f"its index names manifest {model.digest}, which is not in it")
    if name is not None:
        if len(models) != 1:
            raise BadArchive(f"it has {len(models)} models, which cannot all be named {name}")
        return [(name if isinstance(name, ModelName) else ModelName.parse(name), models[0].digest)]
    return [(_name_of(model), model.digest) for model in models]


def _descriptors(index: bytes) -> list[Layer]:
    try:
        manifests = parse_json(index, "index.json").get("manifests")
        if not isinstance(manifests, list) or not manifests:
            raise Corrupt("it lists no manifests")
        models = [Layer.from_json(value) for value in manifests]
    except Corrupt as error:
        raise BadArchive(f"its index.json is damaged: {error.message}") from None
    for model in models:
        if model.media_type not in (media.MANIFEST, media.DOCKER_MANIFEST):
            raise BadArchive(f"its index lists {model.media_type!r:.100}, which is not an image manifest")
    return models


def _name_of(model: Layer) -> ModelName:
    name = model.annotations.get(media.REF_NAME)
    if name is None:
        raise BadArchive("it does not say what the model is called", hint="give it a name with --as")
    try:
        return ModelName.parse(name).unpinned
    except StoreError as error:
        raise BadArchive(f"it calls a model {name!r:.100}: {error.message}", hint="give it a name with --as") from None


def _check_complete(store: Store, digest: Digest) -> None:
    try:
        manifest = Manifest.from_bytes(store.read(digest, MAX_BYTES))
        store.check_layers(manifest)
    except (Corrupt, NotFound) as error:
        raise BadArchive(f"its manifest {digest.short} is incomplete or damaged: {error.message}") from None
